// SPDX-License-Identifier: Apache-2.0
#include "farskip/graph/attributes.h"

namespace farskip::detail {
namespace {

template <class T>
void parse_number(std::string_view text, T& value) {
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  if (result.ec != std::errc() || result.ptr != text.data() + text.size())
    throw DataError(fmt::format("'{}' is not a number", text));
}

}  // namespace

std::string field_text(bool value) {
  return value ? "true" : "false";
}
std::string field_text(std::int64_t value) {
  return fmt::format("{}", value);
}
std::string field_text(double value) {
  return fmt::format("{}", value);
}
std::string field_text(const std::string& value) {
  return value;
}
std::string field_text(const std::vector<std::int64_t>& value) {
  return fmt::format("[{}]", fmt::join(value, " "));
}

void parse_field(std::string_view text, bool& value) {
  if (text != "true" && text != "false") throw DataError(fmt::format("'{}' is not true or false", text));
  value = text == "true";
}
void parse_field(std::string_view text, std::int64_t& value) {
  parse_number(text, value);
}
void parse_field(std::string_view text, double& value) {
  parse_number(text, value);
}
void parse_field(std::string_view text, std::string& value) {
  value = text;
}
void parse_field(std::string_view text, std::vector<std::int64_t>& value) {
  value.clear();
  if (text.size() < 2 || text.front() != '[' || text.back() != ']')
    throw DataError(fmt::format("'{}' is not a list", text));
  text = text.substr(1, text.size() - 2);
  while (!text.empty()) {
    const std::size_t space = std::min(text.find(' '), text.size());
    parse_number(text.substr(0, space), value.emplace_back());
    text.remove_prefix(std::min(space + 1, text.size()));
  }
}

}  // namespace farskip::detail
