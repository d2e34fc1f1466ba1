// SPDX-License-Identifier: Apache-2.0
#include "cli/units.h"

#include <charconv>
#include <cmath>
#include <span>

#include "farskip/config/scalar.h"

namespace farskip {
namespace {

struct Unit {
  std::string_view name;
  double factor;
};
constexpr Unit kLinkUnits[] = {{"GB/s", 1e9}, {"MB/s", 1e6}, {"Gb/s", 1e9 / 8}, {"Mb/s", 1e6 / 8}};
constexpr Unit kTimeUnits[] = {{"us", 1e-6}, {"ms", 1e-3}, {"s", 1}};
constexpr Unit kFlopUnits[] = {{"GFLOP/s", 1e9}, {"TFLOP/s", 1e12}};
constexpr Unit kMemoryUnits[] = {{"GB/s", 1e9}, {"TB/s", 1e12}};

/// nullopt unless `text` is a number of one of the units, not negative.
std::optional<double> parse_quantity(std::string_view text, std::span<const Unit> units) {
  double number = 0;
  const auto [end, failure] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failure != std::errc{} || !std::isfinite(number) || number < 0) return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  while (text.starts_with(' ')) text.remove_prefix(1);
  for (const Unit& unit : units)
    if (text == unit.name) return number * unit.factor;
  return std::nullopt;
}

}  // namespace

double parse_link_rate(const std::string& option, const std::string& text) {
  const auto rate = parse_quantity(text, kLinkUnits);
  if (!rate || *rate <= 0)
    throw UsageError(fmt::format(
        "{} '{}': what one rank sends at once, more than 0, in GB/s or MB/s (bytes) or Gb/s or Mb/s (bits), "
        "as in {} 48GB/s",
        option, text, option));
  return *rate;
}

double parse_duration(const std::string& option, const std::string& text) {
  const auto seconds = parse_quantity(text, kTimeUnits);
  if (!seconds)
    throw UsageError(fmt::format("{} '{}': a time in us, ms or s, as in {} 20us", option, text, option));
  return *seconds;
}

DeviceRates parse_device_rates(const std::string& option, const std::string& text) {
  const std::size_t comma = text.find(',');
  const double flops = parse_quantity(std::string_view(text).substr(0, comma), kFlopUnits).value_or(0);
  const double bytes =
      comma == std::string::npos
          ? 0
          : parse_quantity(std::string_view(text).substr(comma + 1), kMemoryUnits).value_or(0);
  if (flops <= 0 || bytes <= 0)
    throw UsageError(
        fmt::format("{} '{}': the rate of matrix products (GFLOP/s, TFLOP/s) and of memory (GB/s, TB/s), "
                    "both more than 0, "
                    "as in {} 400TFLOP/s,3TB/s",
                    option, text, option));
  return {flops, bytes};
}

std::vector<std::int64_t> parse_list(const std::string& option, const std::string& text, std::int64_t most) {
  std::vector<std::int64_t> values;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const Parsed<std::int64_t> number = parse_integer(std::string_view(text).substr(begin, end - begin));
    if (!number.value || *number.value < 1 || *number.value > most)
      throw UsageError(
          fmt::format("{}: \"{}\" is no list of numbers; allowed: integers from 1 to {} between commas, "
                      "such as 1,8,64",
                      option, text, most));
    values.push_back(*number.value);
    begin = end + 1;
  }
  return values;
}

}  // namespace farskip
