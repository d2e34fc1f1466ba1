// SPDX-License-Identifier: Apache-2.0
#pragma once
// Model folders in hub layout that we write, and the hashes by which they are read again.

#include <cstdint>
#include <vector>

#include "farskip/state/weights.h"
#include "hub/companions.h"
#include "state/hub_sources.h"

namespace farskip {

/// Bytes of weights in a file, as on the hub.
inline constexpr std::uint64_t kShardSize = 5'000'000'000;

/// UsageError where the folder holds a model, or a run; IoError where that cannot be seen, or where neither
/// the folder nor, if it is not there, the one that it would be made in can be written.
void refuse_unusable_folder(const fs::path& folder, const Companions& companions);

/// Writes config.json, the weights, the companions and model.manifest.json. Weights are model.safetensors,
/// or, where they take more than `shard_size` bytes, model-00001-of-0000N.safetensors … and
/// model.safetensors.index.json; a tensor that is larger has a file of its own. They are made and written one
/// by one. Refuses an unusable folder; IoError where a file cannot be written. DataError naming a weight that
/// is not finite. A failure leaves nothing behind, a process that is killed only a folder
/// unfinished.tmp-PID-… in there, which the next one removes.
void write_hub_folder(const fs::path& folder, const ModelConfig& config,
                      const std::vector<HubSource>& sources, DType dtype, const Companions& companions,
                      std::uint64_t shard_size = kShardSize);

/// Compares size and hash of every file that model.manifest.json lists; nothing where there is none.
/// DataError naming the first file that differs, MissingInputError for one that is gone.
void verify_hub_folder(const fs::path& folder);

}  // namespace farskip
