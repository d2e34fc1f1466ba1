// SPDX-License-Identifier: Apache-2.0
#include "report/axis.h"

#include <algorithm>
#include <cmath>

#include "farskip/base/error.h"
#include "report/chart.h"

namespace farskip {
namespace {

/// 1, 2, 2.5 or 5 times a power of ten: the least that cuts `width` into at most `parts`.
double round_step(double width, int parts) {
  const double raw = width / parts, power = std::pow(10.0, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 2.5, 5.0})
    if (factor * power >= raw * (1 - 1e-9)) return factor * power;
  return 10 * power;
}

std::string without_zeros(std::string text) {
  if (text.find('.') == std::string::npos) return text;
  text.erase(text.find_last_not_of('0') + 1);
  if (text.ends_with('.')) text.pop_back();
  return text;
}

/// "3e-4" for 3e-04.
std::string scientific(double value, int decimals) {
  const std::string text = fmt::format("{:.{}e}", value, decimals);
  const std::size_t e = text.find('e');
  return without_zeros(text.substr(0, e)) + fmt::format("e{}", std::stoi(text.substr(e + 1)));
}

struct Unit {
  double factor;
  const char* suffix;
};
Unit unit_of(double value) {
  for (const Unit unit : {Unit{1e12, "T"}, Unit{1e9, "G"}, Unit{1e6, "M"}, Unit{1e3, "k"}})
    if (std::abs(value) >= unit.factor) return unit;
  return {1, ""};
}

std::string tick_text(double value, double step, double largest) {
  if (std::abs(value) < step / 2) return "0";
  if (largest < 1e-2 || largest >= 1e15) return scientific(value, 2);
  const Unit unit = largest >= 1e4 ? unit_of(largest) : Unit{1, ""};
  const double scaled = step / unit.factor;
  int decimals = std::clamp(static_cast<int>(std::ceil(-std::log10(scaled) - 1e-9)), 0, 6);
  const double last_digit = scaled * std::pow(10.0, decimals);
  if (std::abs(last_digit - std::round(last_digit)) > 1e-6) ++decimals;  // steps of 2.5
  return fmt::format("{:.{}f}{}", value / unit.factor, decimals, unit.suffix);
}

void add_decades(Axis& axis) {
  const int first = static_cast<int>(std::ceil(std::log10(axis.low) - 1e-9)),
            last = static_cast<int>(std::floor(std::log10(axis.high) + 1e-9));
  const int stride = std::max(1, (last - first + 5) / 5);
  for (int e = first; e <= last; e += stride) {
    const double value = std::pow(10.0, e);
    axis.ticks.push_back({value, value >= 1e-2 && value < 1e15 ? short_number(value) : scientific(value, 0)});
  }
}

}  // namespace

double Axis::place(double value) const {
  if (!logarithmic) return (value - low) / (high - low);
  return std::log(std::max(value, low * 1e-3) / low) / std::log(high / low);
}

Axis make_axis(double low, double high, int num_ticks, bool logarithmic, Padding padding) {
  // Beyond this, differences overflow.
  low = std::clamp(low, -1e300, 1e300);
  high = std::clamp(high, -1e300, 1e300);
  Axis axis;
  axis.logarithmic = logarithmic;
  if (logarithmic) {
    axis.low = low / 1.3;
    axis.high = high * 1.3;
    add_decades(axis);
    return axis;
  }
  if (!(high - low > 1e-12 * std::max(std::abs(low), std::abs(high)))) {  // one value
    const double around = low == 0 ? 1 : 0.1 * std::abs(low);
    if (padding != Padding::above) low -= around;
    high += around;
  }
  const double room = 0.06 * (high - low);
  axis.low = padding == Padding::both ? low - room : low;
  axis.high = padding == Padding::none ? high : high + room;
  const double step = round_step(axis.high - axis.low, num_ticks);
  const double largest = std::max(std::abs(axis.low), std::abs(axis.high));
  for (double i = std::ceil(axis.low / step - 1e-9); i * step <= axis.high + 1e-9 * step; ++i)
    axis.ticks.push_back({i * step, tick_text(i * step, step, largest)});
  return axis;
}

std::string short_number(double value) {
  if (!std::isfinite(value)) return "not finite";
  const double size = std::abs(value);
  if (size == 0) return "0";
  if (size < 1e-3 || size >= 1e15) return scientific(value, 2);
  const Unit unit = size >= 1e4 ? unit_of(size) : Unit{1, ""};
  const double scaled = value / unit.factor;
  const double digits = std::floor(std::log10(std::abs(scaled)));
  const int decimals = std::clamp(3 - static_cast<int>(digits) - (unit.factor > 1 ? 1 : 0), 0, 5);
  return without_zeros(fmt::format("{:.{}f}", scaled, decimals)) + unit.suffix;
}

}  // namespace farskip
