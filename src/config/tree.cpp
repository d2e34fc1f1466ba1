#include "farskip/config/tree.h"

#include <algorithm>
#include <cmath>

#include "farskip/config/scalar.h"

namespace farskip {
namespace {

// Whether `text` can be written without quotes, in block and in flow context, and read back as it is.
bool is_plain_safe(const std::string& text) {
  const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  if (text.empty() || text == "null" || text == "Null" || text == "NULL") return false;
  if (text[0] == '-' && (text.size() == 1 || !(is_digit(text[1]) || text[1] == '.'))) return false;
  if (!(is_letter(text[0]) || is_digit(text[0]) ||
        std::string_view("_/.-").find(text[0]) != std::string_view::npos))
    return false;
  return text != "..." && std::all_of(text.begin(), text.end(), [&](char c) {
           return is_letter(c) || is_digit(c) || c == '_' || c == '/' || c == '.' || c == '+' || c == '-';
         });
}

std::string quote(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\')
      out += fmt::format("\\{}", c);
    else if (c == '\n')
      out += "\\n";
    else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f)
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    else
      out += c;
  }
  return out + "\"";
}

std::string scalar_text(const ConfigNode& node) {
  return !node.quoted && is_plain_safe(node.text) ? node.text : quote(node.text);
}

std::string key_text(const ConfigNode& node) {
  return is_plain_safe(node.key) ? node.key : quote(node.key);
}

void write_flow(const ConfigNode& node, std::string& out) {
  const char* separator = "";
  switch (node.kind) {
    case ConfigNode::Kind::null:
      out += "null";
      break;
    case ConfigNode::Kind::scalar:
      out += scalar_text(node);
      break;
    case ConfigNode::Kind::list:
      out += "[";
      for (const ConfigNode& child : node.children) {
        out += separator;
        write_flow(child, out);
        separator = ", ";
      }
      out += "]";
      break;
    case ConfigNode::Kind::map:
      out += "{";
      for (const ConfigNode& child : node.children) {
        out += separator + key_text(child) + ": ";
        write_flow(child, out);
        separator = ", ";
      }
      out += "}";
      break;
  }
}

// Maps in block style, whatever stands inside a list in flow style.
void write_block(const ConfigNode& map, std::size_t indent, std::string& out) {
  for (const ConfigNode& child : map.children) {
    out += std::string(indent, ' ') + key_text(child) + ":";
    if (child.kind == ConfigNode::Kind::map && !child.children.empty()) {
      out += "\n";
      write_block(child, indent + 2, out);
    } else {
      out += " ";
      write_flow(child, out);
      out += "\n";
    }
  }
}

ConfigNode make_scalar(std::string text, bool quoted) {
  ConfigNode node;
  node.kind = ConfigNode::Kind::scalar;
  node.text = std::move(text);
  node.quoted = quoted;
  return node;
}

}  // namespace

const ConfigNode* ConfigNode::find(std::string_view name) const {
  if (kind != Kind::map) return nullptr;
  const auto at =
      std::find_if(children.begin(), children.end(), [&](const auto& child) { return child.key == name; });
  return at == children.end() ? nullptr : &*at;
}

void ConfigNode::set(std::string_view name, ConfigNode value) {
  FARSKIP_CHECK(kind == Kind::null || kind == Kind::map, "cannot set {} of {}", name, describe_kind(*this));
  kind = Kind::map;
  value.key = name;
  if (!value.key_position.file) value.key_position = value.position;
  const auto at =
      std::find_if(children.begin(), children.end(), [&](const auto& child) { return child.key == name; });
  if (at == children.end())
    children.push_back(std::move(value));
  else
    *at = std::move(value);
}

bool operator==(const ConfigNode& a, const ConfigNode& b) {
  if (a.kind != b.kind || a.text != b.text || a.key != b.key) return false;
  if (a.quoted != b.quoted && is_plain_safe(a.text)) return false;
  return a.children == b.children;
}

namespace {

std::string text_of(const ConfigNode* node) {
  if (node == nullptr || node->kind == ConfigNode::Kind::null) return "nothing";
  std::string text;
  write_flow(*node, text);
  return text;
}

std::optional<Difference> first_difference(const std::string& path, const ConfigNode* left,
                                           const ConfigNode* right) {
  constexpr auto map = ConfigNode::Kind::map;
  const auto is_map = [](const ConfigNode* node) { return node != nullptr && node->kind == map; };
  if (!is_map(left) && !is_map(right)) {
    const ConfigNode nothing;
    ConfigNode a = left == nullptr ? nothing : *left, b = right == nullptr ? nothing : *right;
    a.key = b.key;
    return a == b ? std::nullopt : std::optional(Difference{path, text_of(left), text_of(right)});
  }
  // What only one of them has is compared with nothing, key by key.
  std::vector<std::string_view> keys;
  for (const ConfigNode* side : {left, right})
    if (is_map(side))
      for (const ConfigNode& child : side->children)
        if (std::find(keys.begin(), keys.end(), child.key) == keys.end()) keys.push_back(child.key);
  const auto below = [](const ConfigNode* node, std::string_view key) {
    return node == nullptr ? nullptr : node->find(key);
  };
  for (const std::string_view key : keys)
    if (auto found = first_difference(join_path(path, key), below(left, key), below(right, key)))
      return found;
  return {};
}

}  // namespace

std::optional<Difference> first_difference(const ConfigNode& left, const ConfigNode& right) {
  return first_difference("", &left, &right);
}

std::string describe_kind(const ConfigNode& node) {
  switch (node.kind) {
    case ConfigNode::Kind::null:
      return "an empty value";
    case ConfigNode::Kind::list:
      return "a list";
    case ConfigNode::Kind::map:
      return "a map";
    case ConfigNode::Kind::scalar:
      break;
  }
  if (node.quoted) return "text";
  if (parse_integer(node.text).value) return "an integer";
  if (parse_real(node.text).value) return "a number";
  return parse_boolean(node.text).value ? "true or false" : "text";
}

ConfigNode make_node(bool value) {
  return make_scalar(value ? "true" : "false", false);
}
ConfigNode make_node(std::int64_t value) {
  return make_scalar(std::to_string(value), false);
}
ConfigNode make_node(int value) {
  return make_node(std::int64_t{value});
}
ConfigNode make_node(double value) {
  FARSKIP_CHECK(std::isfinite(value), "a configuration holds finite numbers only, not {}", value);
  return make_scalar(fmt::format("{}", value), false);
}
ConfigNode make_node(std::string_view value) {
  return make_scalar(std::string(value), true);
}
ConfigNode make_node(const char* value) {
  return make_scalar(value, true);
}
ConfigNode make_word(std::string_view value) {
  return make_scalar(std::string(value), false);
}
ConfigNode make_list(std::vector<ConfigNode> children) {
  ConfigNode node;
  node.kind = ConfigNode::Kind::list;
  node.children = std::move(children);
  return node;
}

std::string to_yaml(const ConfigNode& tree) {
  std::string out;
  if (tree.kind == ConfigNode::Kind::map && !tree.children.empty()) {
    write_block(tree, 0, out);
  } else {
    write_flow(tree, out);
    out += "\n";
  }
  return out;
}

}  // namespace farskip
