#include "farskip/config/reader.h"

#include <algorithm>

namespace farskip {
namespace {

// A scalar by one of the functions of scalar.h; text in quotes is never a number.
template <class T>
std::optional<T> parse_unquoted(const ConfigNode& node, Parsed<T> (*parse)(std::string_view),
                                std::string& reason) {
  if (node.kind != ConfigNode::Kind::scalar) {
    reason = fmt::format("{} stands here", describe_kind(node));
    return {};
  }
  Parsed<T> parsed = parse(node.text);
  if (node.quoted && parsed.value) {
    parsed = {{}, "is text; write it without quotes"};
  }
  if (!parsed.value) reason = quote_for_message(node.text) + " " + parsed.reason;
  return parsed.value;
}

std::optional<std::int64_t> check_integer(const ConfigNode& node, const IntegerRange& range,
                                          std::string& reason) {
  const auto value = parse_unquoted(node, parse_integer, reason);
  if (!value || contains(range, *value)) return value;
  reason = fmt::format("{} is out of range", *value);
  return {};
}

std::optional<double> check_real(const ConfigNode& node, const RealRange& range, std::string& reason) {
  const auto value = parse_unquoted(node, parse_real, reason);
  if (!value || contains(range, *value)) return value;
  reason = fmt::format("{} is out of range", node.text);
  return {};
}

std::optional<std::string> check_string(const ConfigNode& node, std::string& reason) {
  const auto is_control = [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; };
  if (node.kind != ConfigNode::Kind::scalar)
    reason = fmt::format("{} stands here", describe_kind(node));
  else if (node.text.empty())
    reason = "is empty";
  else if (std::any_of(node.text.begin(), node.text.end(), is_control))
    reason = quote_for_message(node.text) + " contains control characters";
  else
    return node.text;
  return {};
}

std::optional<std::string> check_path(const ConfigNode& node, std::string& reason) {
  const std::optional<std::string> text = check_string(node, reason);
  if (!text) return {};
  Parsed<std::string> path = parse_path(*text);
  if (!path.value) reason = quote_for_message(*text) + " " + path.reason;
  return path.value;
}

std::string describe_list(const std::string& item, const ListSize& size) {
  if (size.min == size.max) return fmt::format("list of {}: {}", size.min, item);
  if (size.min > 0) return fmt::format("list of at least {}: {}", size.min, item);
  return fmt::format("list: {}", item);
}

template <class T>
std::string flow_text(const std::vector<T>& values) {
  return fmt::format("[{}]", fmt::join(values, ", "));
}

const ConfigNode& empty_map() {
  static const ConfigNode node = [] {
    ConfigNode map;
    map.kind = ConfigNode::Kind::map;
    return map;
  }();
  return node;
}

}  // namespace

Reader::Reader(const ConfigNode& map, ErrorList& errors, std::string path)
    : map_(&map), errors_(&errors), path_(std::move(path)) {
  if (map.kind == ConfigNode::Kind::map) return;
  quiet_ = true;
  errors_->add(map.position, path_,
               fmt::format("{} stands here; allowed: a map of key: value lines", describe_kind(map)));
  map_ = &empty_map();
}

const ConfigNode* Reader::present(std::string_view key, const std::string& allowed,
                                  const std::string& fallback, Absent absent) {
  read_.insert(std::string(key));
  errors_->add_known_key({path_of(key), allowed, fallback});
  const ConfigNode* node = map_->find(key);
  if (node == nullptr) {
    if (absent == Absent::required && !quiet_)
      fail(key, fmt::format("this key is missing; allowed: {}", allowed));
    return nullptr;
  }
  if (node->kind != ConfigNode::Kind::null) return node;
  if (absent != Absent::optional) fail(key, fmt::format("there is no value; allowed: {}", allowed));
  return nullptr;
}

template <class T>
std::optional<T> Reader::read(std::string_view key, const std::string& allowed, const std::string& fallback,
                              Absent absent, const Check<T>& check) {
  const ConfigNode* node = present(key, allowed, fallback, absent);
  if (node == nullptr) return {};
  std::string reason;
  std::optional<T> value = check(*node, reason);
  if (!value) fail(key, fmt::format("{}; allowed: {}", reason, allowed));
  return value;
}

template <class T>
std::optional<std::vector<T>> Reader::read_list(std::string_view key, const std::string& item,
                                                const std::string& fallback, ListSize size,
                                                const Check<T>& check) {
  const std::string allowed = describe_list(item, size);
  const ConfigNode* node = present(key, allowed, fallback, Absent::fallback);
  if (node == nullptr) return {};
  if (node->kind != ConfigNode::Kind::list) {
    const std::string found = node->kind == ConfigNode::Kind::scalar
                                  ? quote_for_message(node->text) + " is no list"
                                  : "a map stands here";
    fail(key, fmt::format("{}; allowed: {}", found, allowed));
    return {};
  }
  if (node->children.size() < size.min || node->children.size() > size.max) {
    fail(key, fmt::format("{} values; allowed: {}", node->children.size(), allowed));
    return {};
  }
  std::vector<T> values;
  for (std::size_t i = 0; i < node->children.size(); ++i) {
    std::string reason;
    if (std::optional<T> value = check(node->children[i], reason)) {
      values.push_back(*std::move(value));
    } else {
      unsound_.insert(std::string(key));
      errors_->add(node->children[i].position, fmt::format("{}[{}]", path_of(key), i),
                   fmt::format("{}; allowed: {}", reason, item));
    }
  }
  return sound(key) ? std::optional(values) : std::nullopt;
}

std::optional<std::int64_t> Reader::read_integer(std::string_view key, const IntegerRange& range,
                                                 const std::string& fallback, Absent absent) {
  return read<std::int64_t>(key, describe(range), fallback, absent, [&](const auto& node, auto& reason) {
    return check_integer(node, range, reason);
  });
}

std::optional<std::int64_t> Reader::read_integer_or(std::string_view automatic, std::string_view key,
                                                    const IntegerRange& range, std::int64_t fallback) {
  using Number = std::optional<std::int64_t>;
  const auto check = [&](const ConfigNode& node, std::string& reason) -> std::optional<Number> {
    if (node.kind == ConfigNode::Kind::scalar && node.text == automatic) return Number{};
    const Number number = check_integer(node, range, reason);
    return number ? std::optional<Number>(number) : std::nullopt;
  };
  return read<Number>(key, fmt::format("{}, {}", automatic, describe(range)), std::to_string(fallback),
                      Absent::fallback, check)
      .value_or(fallback);
}

std::optional<double> Reader::read_real(std::string_view key, const RealRange& range,
                                        const std::string& fallback, Absent absent) {
  return read<double>(key, describe(range), fallback, absent,
                      [&](const auto& node, auto& reason) { return check_real(node, range, reason); });
}
double Reader::real(std::string_view key, RealRange range) {
  return read_real(key, range, "required", Absent::required).value_or(std::clamp(1.0, range.min, range.max));
}
double Reader::real(std::string_view key, RealRange range, double fallback) {
  return read_real(key, range, fmt::format("{}", fallback), Absent::fallback).value_or(fallback);
}
std::optional<double> Reader::optional_real(std::string_view key, RealRange range) {
  return read_real(key, range, "-", Absent::optional);
}

namespace {

std::optional<bool> check_boolean(const ConfigNode& node, std::string& reason) {
  return parse_unquoted(node, parse_boolean, reason);
}

}  // namespace

bool Reader::boolean(std::string_view key) {
  return read<bool>(key, "true, false", "required", Absent::required, check_boolean).value_or(false);
}
bool Reader::boolean(std::string_view key, bool fallback) {
  return read<bool>(key, "true, false", fallback ? "true" : "false", Absent::fallback, check_boolean)
      .value_or(fallback);
}
std::optional<bool> Reader::optional_boolean(std::string_view key) {
  return read<bool>(key, "true, false", "-", Absent::optional, check_boolean);
}

std::string Reader::string(std::string_view key) {
  return read<std::string>(key, "text", "required", Absent::required, check_string).value_or("");
}
std::string Reader::string(std::string_view key, const std::string& fallback) {
  return read<std::string>(key, "text", fallback, Absent::fallback, check_string).value_or(fallback);
}
std::optional<std::string> Reader::optional_string(std::string_view key) {
  return read<std::string>(key, "text", "-", Absent::optional, check_string);
}

std::optional<std::string> Reader::optional_path(std::string_view key) {
  return read<std::string>(key, "path", "-", Absent::optional, check_path);
}
std::vector<std::string> Reader::paths(std::string_view key, ListSize size) {
  return read_list<std::string>(key, "path", "[]", size, check_path).value_or(std::vector<std::string>{});
}

namespace {

bool is_one_of(const std::string& names, std::string_view name) {
  return !name.empty() && name.find(',') == std::string_view::npos &&
         fmt::format(", {}, ", names).find(fmt::format(", {}, ", name)) != std::string::npos;
}

std::optional<std::string> check_name(const ConfigNode& node, const std::string& names, std::string& reason) {
  if (node.kind != ConfigNode::Kind::scalar)
    reason = fmt::format("{} stands here", describe_kind(node));
  else if (!is_one_of(names, node.text))
    reason = quote_for_message(node.text) + " is not known";
  else
    return node.text;
  return {};
}

}  // namespace

std::string Reader::choose(std::string_view key, const std::string& names,
                           std::optional<std::string_view> fallback, bool optional) {
  const Absent absent = optional ? Absent::optional : fallback ? Absent::fallback : Absent::required;
  const std::string shown = optional ? "-" : std::string(fallback.value_or("required"));
  return read<std::string>(key, names, shown, absent,
                           [&](const auto& node, auto& reason) { return check_name(node, names, reason); })
      .value_or(std::string(fallback.value_or("")));
}

std::vector<std::string> Reader::choose_list(std::string_view key, const std::string& names) {
  return read_list<std::string>(
             key, names, "[]", {},
             [&](const auto& node, auto& reason) { return check_name(node, names, reason); })
      .value_or(std::vector<std::string>{});
}

std::optional<std::uint64_t> Reader::optional_memory(std::string_view key, std::string_view automatic) {
  using Bytes = std::optional<std::uint64_t>;
  const std::string allowed = fmt::format("{}{}a size such as 512MiB (B, kB, MB, GB, TB, KiB, MiB, GiB, TiB)",
                                          automatic, automatic.empty() ? "" : ", ");
  const auto check = [&](const ConfigNode& node, std::string& reason) -> std::optional<Bytes> {
    if (!automatic.empty() && node.kind == ConfigNode::Kind::scalar && node.text == automatic) return Bytes{};
    const Bytes bytes = parse_unquoted(node, parse_memory, reason);
    return bytes ? std::optional<Bytes>(bytes) : std::nullopt;
  };
  const std::string shown = automatic.empty() ? "-" : std::string(automatic);
  return read<Bytes>(key, allowed, shown, automatic.empty() ? Absent::optional : Absent::fallback, check)
      .value_or(Bytes{});
}

std::optional<double> Reader::optional_rate(std::string_view key) {
  return read<double>(
      key, "a rate such as 48GB/s (B, kB, MB, GB, TB, KiB, MiB, GiB, TiB, Mbit, Gbit per second)", "-",
      Absent::optional,
      [](const auto& node, auto& reason) { return parse_unquoted(node, parse_rate, reason); });
}

std::vector<std::int64_t> Reader::integers(std::string_view key, IntegerRange range, ListSize size,
                                           const std::vector<std::int64_t>& fallback) {
  return read_list<std::int64_t>(
             key, describe(range), flow_text(fallback), size,
             [&](const auto& node, auto& reason) { return check_integer(node, range, reason); })
      .value_or(fallback);
}
std::vector<double> Reader::reals(std::string_view key, RealRange range, ListSize size,
                                  const std::vector<double>& fallback) {
  return read_list<double>(key, describe(range), flow_text(fallback), size,
                           [&](const auto& node, auto& reason) { return check_real(node, range, reason); })
      .value_or(fallback);
}
std::vector<std::string> Reader::strings(std::string_view key, ListSize size) {
  return read_list<std::string>(key, "text", "[]", size, check_string).value_or(std::vector<std::string>{});
}

Reader Reader::section(std::string_view key) {
  const ConfigNode* node = take(key, "map");
  Reader reader(node == nullptr ? empty_map() : *node, *errors_, path_of(key));
  // Keys missing from a section that is not there are reported where it should be.
  if (node == nullptr) reader.quiet_ = quiet_;
  if (node == nullptr)
    reader.absent_position_ = map_->find(key) != nullptr ? map_->find(key)->position : position();
  return reader;
}

const ConfigNode* Reader::take(std::string_view key, const std::string& allowed,
                               const std::string& fallback) {
  return present(key, allowed, fallback, Absent::optional);
}

void Reader::ignore(std::string_view key) {
  read_.insert(std::string(key));
}

void Reader::require(std::string_view key, const Expected& expected, const std::string& why) {
  struct Matcher {
    const ConfigNode& node;
    bool operator()(bool value) const { return !node.quoted && parse_boolean(node.text).value == value; }
    bool operator()(std::int64_t value) const {
      return !node.quoted && parse_integer(node.text).value == value;
    }
    bool operator()(double value) const { return !node.quoted && parse_real(node.text).value == value; }
    bool operator()(const std::string& value) const { return node.text == value; }
  };
  const std::string allowed =
      std::visit([](const auto& value) { return fmt::format("{}", value); }, expected);
  const ConfigNode* node = take(key, allowed);
  if (node == nullptr) return;
  if (node->kind == ConfigNode::Kind::scalar && std::visit(Matcher{*node}, expected)) return;
  const std::string found =
      node->kind == ConfigNode::Kind::scalar ? quote_for_message(node->text) : describe_kind(*node);
  fail(key, fmt::format("{} is not supported: {}; allowed: {}", found, why, allowed));
}

bool Reader::has(std::string_view key) const {
  const ConfigNode* node = map_->find(key);
  return node != nullptr && node->kind != ConfigNode::Kind::null;
}

bool Reader::is_override(std::string_view key) const {
  const ConfigNode* node = map_->find(key);
  return node != nullptr && node->position.line == 0 && node->position.file != nullptr;
}

void Reader::fail(std::string_view key, const std::string& message) {
  unsound_.insert(std::string(key));
  const ConfigNode* node = map_->find(key);
  errors_->add(node == nullptr ? position() : node->position, path_of(key), message);
}

void Reader::finish() {
  for (const ConfigNode& child : map_->children)
    if (!read_.contains(child.key)) errors_->add_unknown_key(child.key_position, path_, child.key);
}

}  // namespace farskip
