// SPDX-License-Identifier: Apache-2.0
// YAML and JSON text → ConfigNode. yaml-cpp's own node tree takes the first of two equal keys without a word
// and shares nodes between aliases, so the tree is built from the parser's events instead.
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <optional>
#include <sstream>
#include <unordered_map>

#include "farskip/base/file.h"
#include "farskip/config/tree.h"

namespace farskip {
namespace {

constexpr const char* alias_message =
    "YAML alias (*name); write the value out, or put text that begins with * in quotes";

using FileName = std::shared_ptr<const std::string>;

/// A fault that ends the parse.
[[noreturn]] void fail(ErrorList& errors, const Position& position, const std::string& message) {
  errors.add(position, "", message);
  errors.throw_if_any();
  throw InternalError("a list with a mistake did not throw");
}

// Length of the well-formed UTF-8 sequence at `at`; 0 for none (overlong forms and surrogates are none).
std::size_t utf8_length(std::string_view text, std::size_t at) {
  const auto byte = [&](std::size_t i) {
    return at + i < text.size() ? static_cast<unsigned char>(text[at + i]) : 0u;
  };
  const auto tail = [&](std::size_t i) { return (byte(i) & 0xC0u) == 0x80u; };
  const unsigned a = byte(0), b = byte(1);
  if (a < 0x80) return 1;
  if (a >= 0xC2 && a <= 0xDF && tail(1)) return 2;
  if (a >= 0xE0 && a <= 0xEF && tail(1) && tail(2) && !(a == 0xE0 && b < 0xA0) && !(a == 0xED && b > 0x9F))
    return 3;
  if (a >= 0xF0 && a <= 0xF4 && tail(1) && tail(2) && tail(3) && !(a == 0xF0 && b < 0x90) &&
      !(a == 0xF4 && b > 0x8F))
    return 4;
  return 0;
}

void check_bytes(std::string_view text, const FileName& file, ErrorList& errors) {
  Position position{file, 1, 1};
  for (std::size_t at = 0; at < text.size(); ++position.column) {
    const std::size_t length = utf8_length(text, at);
    const auto byte = static_cast<unsigned char>(text[at]);
    if (length == 0)
      fail(errors, position, fmt::format("byte 0x{:02x} is not UTF-8; save the file as UTF-8 text", byte));
    if ((byte < 0x20 && byte != '\t' && byte != '\n' && byte != '\r') || byte == 0x7f)
      fail(errors, position, fmt::format("control character 0x{:02x}; only text is allowed", byte));
    if (byte == '\n') position = {file, position.line + 1, 0};
    at += length;
  }
}

// JSON allows tabs between its tokens, YAML does not everywhere: in a text that is one flow value, tabs
// outside of strings become blanks (one for one, so that columns stay).
std::string replace_json_tabs(std::string_view text) {
  std::string out(text);
  const auto first = text.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos || (text[first] != '{' && text[first] != '[')) return out;
  bool in_string = false;
  for (std::size_t i = 0; i < out.size(); ++i) {
    if (in_string && out[i] == '\\')
      ++i;
    else if (out[i] == '"')
      in_string = !in_string;
    else if (out[i] == '\t' && !in_string)
      out[i] = ' ';
  }
  return out;
}

// What usually lies behind yaml-cpp's terse messages.
std::string explain_syntax(std::string_view text, const Position& position, const std::string& message) {
  for (int line = 1; line < position.line; ++line)
    text.remove_prefix(std::min(text.find('\n') + 1, text.size()));
  const std::string_view indent = text.substr(0, text.find_first_not_of(" \t"));
  if (indent.find('\t') != std::string_view::npos) return " (a tab in the indentation; indent with blanks)";
  if (message == YAML::ErrorMsg::MAP_VALUE)
    return " (a colon that cannot stand here; check the indentation, or put the text in quotes)";
  return "";
}

class TreeBuilder final : public YAML::EventHandler {
 public:
  TreeBuilder(const std::string& text, FileName file, ErrorList& errors)
      : text_(text), file_(std::move(file)), errors_(errors) {
    continuation_bytes_.reserve(text.size() + 1);
    std::uint32_t count = 0;
    for (const char c : text) {
      continuation_bytes_.push_back(count);
      count += (static_cast<unsigned char>(c) & 0xC0u) == 0x80u ? 1 : 0;
    }
    continuation_bytes_.push_back(count);
  }

  std::optional<ConfigNode> take_root() { return std::move(root_); }

  // yaml-cpp counts columns in bytes from 0, we in characters from 1.
  Position position_of(const YAML::Mark& mark) const {
    if (mark.is_null()) return {file_, 1, 1};
    const auto end = std::min(static_cast<std::size_t>(mark.pos), text_.size());
    const auto start = end - std::min(static_cast<std::size_t>(mark.column), end);
    const auto extra = static_cast<int>(continuation_bytes_[end] - continuation_bytes_[start]);
    return {file_, mark.line + 1, mark.column + 1 - extra};
  }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (root_) fail(errors_, position_of(mark), "a second document begins; one document per file is allowed");
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    refuse_properties(mark, "", anchor);
    Position position = position_of(mark);
    // The mark of a value that is not there is that of whatever follows.
    if (!stack_.empty() && stack_.back().has_key) position = stack_.back().key_position;
    count_node(position);
    ConfigNode node;
    node.position = position;
    complete(std::move(node));
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    fail(errors_, position_of(mark), alias_message);
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    refuse_properties(mark, tag, anchor);
    ConfigNode node;
    node.kind = ConfigNode::Kind::scalar;
    node.text = value;
    node.quoted = tag == "!";  // yaml-cpp's mark of a scalar that is not plain
    node.position = position_of(mark);
    count_node(node.position);
    complete(std::move(node));
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(ConfigNode::Kind::list, mark, tag, anchor);
  }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(ConfigNode::Kind::map, mark, tag, anchor);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapEnd() override { close(); }

 private:
  struct Frame {
    ConfigNode node;
    bool has_key = false;  // in a map: the key is read, its value comes next
    std::string key;
    Position key_position;
    std::unordered_map<std::string, Position> keys;
  };

  void refuse_properties(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    if (anchor != 0)
      fail(errors_, position_of(mark),
           "YAML anchor (&name); write the value out, or put text that begins with & in quotes");
    const auto at = static_cast<std::size_t>(std::max(mark.pos, 0));
    const bool tagged = (!tag.empty() && tag != "?" && tag != "!") || (at < text_.size() && text_[at] == '!');
    if (tagged)
      fail(errors_, position_of(mark),
           "YAML tag (!type); leave it out, or put text that begins with ! in quotes");
  }

  void count_node(const Position& position) {
    if (++num_nodes_ > max_config_nodes)
      fail(errors_, position,
           fmt::format("more than {} values; this is not a configuration", max_config_nodes));
  }

  void open(ConfigNode::Kind kind, const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    refuse_properties(mark, tag, anchor);
    const Position position = position_of(mark);
    count_node(position);
    if (!stack_.empty() && stack_.back().node.kind == ConfigNode::Kind::map && !stack_.back().has_key)
      fail(errors_, position, "a list or a map is used as a key; a key is a single word");
    if (stack_.size() >= max_config_levels)
      fail(errors_, position, fmt::format("nested more than {} levels deep", max_config_levels));
    Frame frame;
    frame.node.kind = kind;
    frame.node.position = position;
    stack_.push_back(std::move(frame));
  }

  void close() {
    ConfigNode node = std::move(stack_.back().node);
    stack_.pop_back();
    complete(std::move(node));
  }

  void complete(ConfigNode node) {
    if (stack_.empty()) {
      root_ = std::move(node);
      return;
    }
    Frame& top = stack_.back();
    if (top.node.kind == ConfigNode::Kind::list) {
      top.node.children.push_back(std::move(node));
    } else if (!top.has_key) {
      if (node.kind == ConfigNode::Kind::null)
        fail(errors_, node.position, "an empty key; a key is a single word");
      top.has_key = true;
      top.key = std::move(node.text);
      top.key_position = node.position;
    } else {
      top.has_key = false;
      const auto [first, is_new] = top.keys.emplace(top.key, top.key_position);
      if (!is_new) {
        errors_.add(top.key_position, path_of(top.key),
                    fmt::format("duplicate key; first given in line {}, column {}", first->second.line,
                                first->second.column));
        return;
      }
      node.key = std::move(top.key);
      node.key_position = top.key_position;
      top.node.children.push_back(std::move(node));
    }
  }

  std::string path_of(const std::string& key) const {
    std::string path;
    for (std::size_t i = 0; i + 1 < stack_.size(); ++i)
      path = stack_[i].has_key ? join_path(path, stack_[i].key)
                               : fmt::format("{}[{}]", path, stack_[i].node.children.size());
    return join_path(path, key);
  }

  const std::string& text_;
  FileName file_;
  ErrorList& errors_;
  std::vector<std::uint32_t> continuation_bytes_;  // of UTF-8 characters, before each byte
  std::vector<Frame> stack_;
  std::optional<ConfigNode> root_;
  std::size_t num_nodes_ = 0;
};

}  // namespace

ConfigNode parse_yaml_text(std::string_view text, const std::string& origin, ErrorList& errors) {
  const auto file = std::make_shared<const std::string>(origin);
  if (text.size() > max_config_bytes)
    fail(errors, {file, 0, 0},
         fmt::format("{} bytes; a configuration has at most {} bytes", text.size(), max_config_bytes));
  if (text.substr(0, 3) == "\xEF\xBB\xBF") text.remove_prefix(3);
  check_bytes(text, file, errors);
  const std::string yaml = replace_json_tabs(text);
  std::istringstream stream(yaml);
  TreeBuilder builder(yaml, file, errors);
  try {
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& error) {
    if (error.msg.find(YAML::ErrorMsg::UNKNOWN_ANCHOR) != std::string::npos)
      fail(errors, builder.position_of(error.mark), alias_message);
    const Position position = builder.position_of(error.mark);
    fail(errors, position,
         fmt::format("not valid YAML: {}{}", error.msg, explain_syntax(yaml, position, error.msg)));
  }
  std::optional<ConfigNode> root = builder.take_root();
  if (!root || root->kind == ConfigNode::Kind::null)
    fail(errors, {file, 1, 1}, "empty; a configuration is expected");
  return std::move(*root);
}

ConfigNode parse_yaml_text(std::string_view text, const std::string& origin) {
  ErrorList errors;
  ConfigNode tree = parse_yaml_text(text, origin, errors);
  errors.throw_if_any();
  return tree;
}

ConfigNode parse_yaml_file(const std::filesystem::path& path, ErrorList& errors) {
  std::error_code unknown;  // InputFile will say
  if (std::filesystem::is_directory(path, unknown))
    throw UsageError(fmt::format("{}: is a folder; a YAML file is expected{}", path.string(),
                                 std::filesystem::exists(path / "config.yaml", unknown)
                                     ? ", such as " + (path / "config.yaml").string()
                                     : std::string()));
  const InputFile file(path);
  if (file.size() > max_config_bytes)
    fail(errors, {std::make_shared<const std::string>(path.string()), 0, 0},
         fmt::format("{} bytes; a configuration has at most {} bytes", file.size(), max_config_bytes));
  std::string text(file.size(), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text.data(), text.size())));
  return parse_yaml_text(text, path.string(), errors);
}

ConfigNode parse_yaml_file(const std::filesystem::path& path) {
  ErrorList errors;
  ConfigNode tree = parse_yaml_file(path, errors);
  errors.throw_if_any();
  return tree;
}

}  // namespace farskip
