// SPDX-License-Identifier: Apache-2.0
#include "farskip/config/scalar.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <system_error>
#include <utility>

#include "base/environment.h"

namespace farskip {
namespace {

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

std::size_t count_digits(std::string_view text) {
  std::size_t n = 0;
  while (n < text.size() && is_digit(text[n])) ++n;
  return n;
}

// Why a text that some other reader takes for a number is none here; empty where nothing special is to say.
std::string explain_number(std::string_view text) {
  std::string_view body = text;
  if (!body.empty() && (body[0] == '-' || body[0] == '+')) body.remove_prefix(1);
  if (body.size() > 1 && body[0] == '0' && std::string_view("xXoObB").find(body[1]) != std::string_view::npos)
    return "is not a decimal number; hexadecimal, octal and binary are not read";
  if (!body.empty() && is_digit(body[0]) && body.find('_') != std::string_view::npos) {
    std::string digits(text);
    digits.erase(std::remove(digits.begin(), digits.end(), '_'), digits.end());
    return fmt::format("has underscores; write {}", digits);
  }
  const std::size_t digits = count_digits(body);
  if (digits > 1 && body[0] == '0') {
    body.remove_prefix(std::min(body.find_first_not_of('0'), digits - 1));
    return fmt::format("has a leading zero, which some read as octal; write {}{}", text[0] == '-' ? "-" : "",
                       body);
  }
  if (!text.empty() && text[0] == '+' && digits > 0) return fmt::format("has a plus sign; write {}", body);
  return "";
}

// Length of the longest prefix that has the form of a number; 0 for none.
std::size_t match_real(std::string_view text) {
  std::size_t at = !text.empty() && text[0] == '-' ? 1 : 0;
  const std::size_t whole = count_digits(text.substr(at));
  if (whole > 1 && text[at] == '0') return 0;
  at += whole;
  std::size_t fraction = 0;
  if (at < text.size() && text[at] == '.') {
    fraction = count_digits(text.substr(at + 1));
    at += 1 + fraction;
  }
  if (whole + fraction == 0) return 0;
  if (at < text.size() && (text[at] == 'e' || text[at] == 'E')) {
    std::size_t exponent = at + 1;
    if (exponent < text.size() && (text[exponent] == '-' || text[exponent] == '+')) ++exponent;
    const std::size_t digits = count_digits(text.substr(exponent));
    if (digits > 0) at = exponent + digits;
  }
  return at;
}

struct Unit {
  std::string_view name;
  double bytes;
};
constexpr double ki = 1024.0;
constexpr Unit memory_units[] = {{"B", 1},        {"kB", 1e3},         {"MB", 1e6},
                                 {"GB", 1e9},     {"TB", 1e12},        {"KiB", ki},
                                 {"MiB", ki* ki}, {"GiB", ki* ki* ki}, {"TiB", ki* ki* ki* ki}};
constexpr Unit bit_units[] = {
    {"bit", 1 / 8.0}, {"kbit", 1e3 / 8}, {"Mbit", 1e6 / 8}, {"Gbit", 1e9 / 8}, {"Tbit", 1e12 / 8}};

// A number followed by the name of a unit, with at most one blank between them.
template <std::size_t N>
Parsed<double> parse_quantity(std::string_view text, const Unit (&units)[N]) {
  const std::size_t length = match_real(text);
  if (length == 0) return {{}, "does not begin with a number"};
  std::string_view name = text.substr(length);
  if (name.empty()) return {{}, "has no unit"};
  if (name[0] == ' ') name.remove_prefix(1);
  for (const Unit& unit : units) {
    if (unit.name != name) continue;
    const Parsed<double> number = parse_real(text.substr(0, length));
    if (!number.value) return number;
    if (*number.value < 0) return {{}, "is negative"};
    return {*number.value * unit.bytes, ""};
  }
  return {{}, fmt::format("has the unknown unit \"{}\" (units are written exactly as listed)", name)};
}

}  // namespace

bool contains(const IntegerRange& range, std::int64_t value) {
  return value >= range.min && value <= range.max;
}

bool contains(const RealRange& range, double value) {
  return (range.above_min ? value > range.min : value >= range.min) &&
         (range.below_max ? value < range.max : value <= range.max);
}

std::string describe(const IntegerRange& range) {
  const IntegerRange all;
  if (range.min == all.min && range.max == all.max) return "integer";
  if (range.max == all.max) return fmt::format("integer >= {}", range.min);
  if (range.min == all.min) return fmt::format("integer <= {}", range.max);
  return fmt::format("integer, {} to {}", range.min, range.max);
}

std::string describe(const RealRange& range) {
  const RealRange all;
  const std::string low =
      range.min == all.min ? "" : fmt::format(" {} {}", range.above_min ? ">" : ">=", range.min);
  const std::string high =
      range.max == all.max ? "" : fmt::format(" {} {}", range.below_max ? "<" : "<=", range.max);
  return fmt::format("number{}{}{}", low, !low.empty() && !high.empty() ? " and" : "", high);
}

Parsed<std::int64_t> parse_integer(std::string_view text) {
  const std::size_t sign = !text.empty() && text[0] == '-' ? 1 : 0;
  const std::size_t digits = count_digits(text.substr(sign));
  if (std::string why = explain_number(text); !why.empty()) return {{}, std::move(why)};
  if (digits == 0 || sign + digits != text.size()) {
    if (match_real(text) == text.size() && !text.empty()) {
      const Parsed<double> real = parse_real(text);
      if (real.value && std::abs(*real.value) < 1e15 && std::trunc(*real.value) == *real.value)
        return {{}, fmt::format("is not an integer; write {}", static_cast<std::int64_t>(*real.value))};
    }
    return {{}, "is not an integer"};
  }
  std::int64_t value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  if (result.ec != std::errc()) return {{}, "does not fit into 64 bits"};
  return {value, ""};
}

Parsed<double> parse_real(std::string_view text) {
  if (text.empty() || match_real(text) != text.size()) {
    std::string lower(text);
    for (char& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
    for (const std::string_view name : {".nan", ".inf", "-.inf", "+.inf", "nan", "inf", "-inf", "infinity"})
      if (lower == name) return {{}, "is not finite"};
    std::string why = explain_number(text);
    return {{}, why.empty() ? "is not a number" : std::move(why)};
  }
  double value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  if (result.ec != std::errc() || !std::isfinite(value)) return {{}, "is beyond the range of a double"};
  return {value, ""};
}

Parsed<bool> parse_boolean(std::string_view text) {
  if (text == "true") return {true, ""};
  if (text == "false") return {false, ""};
  std::string lower(text);
  for (char& c : lower) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  for (const std::string_view name : {"true", "yes", "on", "y", "1"})
    if (lower == name) return {{}, "is not true or false; write true"};
  for (const std::string_view name : {"false", "no", "off", "n", "0"})
    if (lower == name) return {{}, "is not true or false; write false"};
  return {{}, "is not true or false"};
}

Parsed<std::uint64_t> parse_memory(std::string_view text) {
  const Parsed<double> bytes = parse_quantity(text, memory_units);
  if (!bytes.value) return {{}, bytes.reason};
  if (*bytes.value > 0x1p62) return {{}, "is more than 2^62 bytes"};
  return {static_cast<std::uint64_t>(std::llround(*bytes.value)), ""};
}

Parsed<double> parse_rate(std::string_view text) {
  if (text.size() < 2 || text.substr(text.size() - 2) != "/s")
    return {{}, "does not end in a unit per second"};
  text.remove_suffix(2);
  if (text.size() > 3 && text.substr(text.size() - 3) == "bit") return parse_quantity(text, bit_units);
  return parse_quantity(text, memory_units);
}

Parsed<std::string> parse_path(std::string_view text) {
  if (text.starts_with('~')) {
    const std::string home = text == "~" || text.starts_with("~/") ? user_home_folder() : "";
    return {
        {},
        fmt::format("begins with ~, which a shell expands and this program does not; write {}, or ./{} for "
                    "a name that begins so",
                    home.empty() ? "the whole path" : home + std::string(text.substr(1)), text)};
  }
  for (std::size_t at = text.find('$'); at != std::string_view::npos; at = text.find('$', at + 1)) {
    const char next = at + 1 < text.size() ? text[at + 1] : ' ';
    if (next == '{' || next == '_' || (next >= 'a' && next <= 'z') || (next >= 'A' && next <= 'Z'))
      return {{},
              "names a variable, which a shell expands and this program does not; write the path itself, or "
              "give it on the command line without quotes"};
  }
  return {std::string(text), ""};
}

}  // namespace farskip
