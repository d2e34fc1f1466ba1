// SPDX-License-Identifier: Apache-2.0
#pragma once
// What runs leave on disk, as tests read it.

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace farskip::test {

/// Lines of RUN/metrics.jsonl.
std::vector<nlohmann::json> read_metrics(const std::filesystem::path& run_dir);

/// RUN/checkpoints/step-N.
std::filesystem::path checkpoint_folder(const std::filesystem::path& run_dir, std::int64_t step);

/// Every file of a checkpoint in one text.
std::string checkpoint_bytes(const std::filesystem::path& run_dir, std::int64_t step);

}  // namespace farskip::test
