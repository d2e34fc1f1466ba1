// SPDX-License-Identifier: Apache-2.0
#include "run_files.h"

#include <map>
#include <sstream>

#include "farskip/base/file.h"
#include "support/json.h"

namespace farskip::test {

std::vector<nlohmann::json> read_metrics(const std::filesystem::path& run_dir) {
  std::vector<nlohmann::json> lines;
  std::istringstream text(read_text_file(run_dir / "metrics.jsonl"));
  for (std::string line; std::getline(text, line);) lines.push_back(test::parse_json(line));
  return lines;
}

std::filesystem::path checkpoint_folder(const std::filesystem::path& run_dir, std::int64_t step) {
  return run_dir / "checkpoints" / ("step-" + std::to_string(step));
}

std::string checkpoint_bytes(const std::filesystem::path& run_dir, std::int64_t step) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(checkpoint_folder(run_dir, step)))
    files[entry.path().filename().string()] = read_text_file(entry.path());
  std::string bytes;
  for (const auto& [name, content] : files) bytes += name + "\n" + content;
  return bytes;
}

}  // namespace farskip::test
