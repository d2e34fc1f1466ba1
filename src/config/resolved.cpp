// SPDX-License-Identifier: Apache-2.0
// The resolved configuration as a file, with where it comes from.
#include <algorithm>

#include "farskip/config/run_config.h"

namespace farskip {
namespace {

constexpr std::string_view kFile = "made from";

std::string comment_line(std::string_view label, std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; },
      ' ');
  return fmt::format("# {}: {}\n", label, text);
}

}  // namespace

std::string resolved_yaml(const RunConfig& config, const std::string& version, const std::string& commit,
                          const std::string& machine, std::int64_t ranks) {
  return "# The resolved configuration of this run, every default included. It can be run as it is.\n" +
         comment_line(kFile, config.file) + comment_line("farskip", version) +
         comment_line("commit", commit) + comment_line("machine", machine) +
         comment_line("ranks", std::to_string(ranks)) + to_yaml(run_config_tree(config));
}

std::string resolved_from(std::string_view yaml) {
  const std::string label = comment_line(kFile, "");
  const std::size_t begin = yaml.find(std::string_view(label).substr(0, label.size() - 1));
  if (begin == std::string_view::npos) return {};
  yaml.remove_prefix(begin + label.size() - 1);
  return std::string(yaml.substr(0, yaml.find('\n')));
}

}  // namespace farskip
