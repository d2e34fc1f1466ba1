#pragma once
// Configuration text as a tree of values that remember where they stand. One parser for the YAML of a run
// and for the config.json of a model (JSON is YAML's flow style).
//
// Only what a configuration needs is accepted. Aliases, anchors and tags are refused (a file of a few lines
// can otherwise expand without bound or contain itself), and so are duplicate keys, a second document, an
// empty file, bytes that are not UTF-8 text, and anything beyond the limits below.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/config/errors.h"

namespace farskip {

inline constexpr std::size_t max_config_bytes = std::size_t{1} << 20;
inline constexpr std::size_t max_config_nodes = 100'000;
inline constexpr std::size_t max_config_levels = 64;

struct ConfigNode {
  enum class Kind { null, scalar, list, map };

  Kind kind = Kind::null;
  std::string text;     // of a scalar
  bool quoted = false;  // a scalar that is a string whatever it looks like: in quotes or a block scalar
  Position position;
  std::string key;  // inside a map
  Position key_position;
  std::vector<ConfigNode> children;  // of a list or a map, in the order of the file

  /// The value under `name` of a map; nullptr where there is none, or no map.
  const ConfigNode* find(std::string_view name) const;
  /// Adds or replaces `name` of a map (a null node becomes a map).
  void set(std::string_view name, ConfigNode value);
};

/// Same values; positions do not count, and quotes only where they change the meaning.
bool operator==(const ConfigNode& a, const ConfigNode& b);

/// A value that two trees have not alike; one that is absent reads "nothing".
struct Difference {
  std::string path, left, right;
};
std::optional<Difference> first_difference(const ConfigNode& left, const ConfigNode& right);

/// "an integer", "a list" and so on, for messages.
std::string describe_kind(const ConfigNode& node);

/// Trees made by hand.
ConfigNode make_node(bool value);
ConfigNode make_node(std::int64_t value);
ConfigNode make_node(int value);
ConfigNode make_node(double value);  // shortest text that reads back the same
ConfigNode make_node(std::string_view value);
ConfigNode make_node(const char* value);
ConfigNode make_word(std::string_view value);  // without quotes: the name of a choice, a size with its unit
ConfigNode make_list(std::vector<ConfigNode> children);

/// Parses a whole text. `origin` names it in messages. Duplicate keys go to `errors` (the first one counts),
/// so that they are reported beside the mistakes of the schema; any other fault ends the parse and throws.
ConfigNode parse_yaml_text(std::string_view text, const std::string& origin, ErrorList& errors);
/// The same; every mistake throws UsageError.
ConfigNode parse_yaml_text(std::string_view text, const std::string& origin);

/// Parses a file. MissingInputError where there is none; a file beyond max_config_bytes is not read at all.
ConfigNode parse_yaml_file(const std::filesystem::path& path, ErrorList& errors);
ConfigNode parse_yaml_file(const std::filesystem::path& path);

/// Sets one value, `train.steps=20`: the path of the key as in the file, and YAML after the first `=`. A map
/// or list replaces the whole old value. The value's position reads `command line: train.steps=20`.
void apply_override(ConfigNode& tree, const std::string& assignment, ErrorList& errors);
void apply_override(ConfigNode& tree, const std::string& assignment);

/// YAML text that parses to an equal tree.
std::string to_yaml(const ConfigNode& tree);

}  // namespace farskip
