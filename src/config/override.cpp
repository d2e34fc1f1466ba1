// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <optional>

#include "farskip/config/tree.h"

namespace farskip {
namespace {

void place_everywhere(ConfigNode& node, const Position& position) {
  node.position = node.key_position = position;
  for (ConfigNode& child : node.children) place_everywhere(child, position);
}

bool is_key(std::string_view part) {
  return !part.empty() && std::all_of(part.begin(), part.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  });
}

// The parts of a path, or nothing if it is none.
std::vector<std::string_view> split_path(std::string_view path) {
  std::vector<std::string_view> parts;
  while (parts.size() < max_config_levels) {
    const auto dot = path.find('.');
    parts.push_back(path.substr(0, dot));
    if (!is_key(parts.back())) return {};
    if (dot == std::string_view::npos) return parts;
    path.remove_prefix(dot + 1);
  }
  return {};
}

ConfigNode& find_or_add(ConfigNode& map, std::string_view key, const Position& position) {
  for (ConfigNode& child : map.children)
    if (child.key == key) return child;
  ConfigNode section;
  section.position = section.key_position = position;
  map.set(key, std::move(section));
  return map.children.back();
}

std::optional<ConfigNode> parse_value(std::string_view text, const std::string& path,
                                      const Position& position, ErrorList& errors) {
  if (text.find_first_not_of(" \t") == std::string_view::npos) {
    errors.add(position, path, "no value after =; write null for none");
    return {};
  }
  if (text == "null" || text == "~") return ConfigNode{};
  try {
    return parse_yaml_text(text, "value");
  } catch (const UsageError& error) {
    errors.add(position, path, fmt::format("the value cannot be read: {}", error.what()));
    return {};
  }
}

}  // namespace

void apply_override(ConfigNode& tree, const std::string& assignment, ErrorList& errors) {
  const Position position{std::make_shared<const std::string>("command line: " + assignment.substr(0, 200)),
                          0, 0};
  const auto equals = assignment.find('=');
  const std::string path = assignment.substr(0, equals);
  const auto parts = split_path(path);
  if (equals == std::string::npos || parts.empty()) {
    errors.add(position, "", "not of the form key.path=value, for example train.steps=20");
    return;
  }
  std::optional<ConfigNode> value =
      parse_value(std::string_view(assignment).substr(equals + 1), path, position, errors);
  if (!value) return;
  place_everywhere(*value, position);
  ConfigNode* at = &tree;
  std::string walked;
  for (const std::string_view part : parts) {
    if (at->kind != ConfigNode::Kind::map && at->kind != ConfigNode::Kind::null) {
      errors.add(position, path,
                 fmt::format("{} is {} and has no keys; give its whole value, {}=...", walked,
                             describe_kind(*at), walked));
      return;
    }
    at = &find_or_add(*at, part, position);
    walked = join_path(walked, part);
  }
  value->key = at->key;
  *at = std::move(*value);
}

void apply_override(ConfigNode& tree, const std::string& assignment) {
  ErrorList errors;
  apply_override(tree, assignment, errors);
  errors.throw_if_any();
}

}  // namespace farskip
