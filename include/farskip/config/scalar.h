// SPDX-License-Identifier: Apache-2.0
#pragma once
// Texts of single values: numbers, true and false, sizes in bytes, rates, paths; and the ranges
// of numbers. Each function gives a value or the
// reason why there is none; the caller adds where the text stands and what is allowed.

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>

namespace farskip {

struct IntegerRange {
  std::int64_t min = std::numeric_limits<std::int64_t>::min();
  std::int64_t max = std::numeric_limits<std::int64_t>::max();
};
inline constexpr IntegerRange at_least_zero{.min = 0}, at_least_one{.min = 1};

/// What of `range` a value of type T can hold.
template <std::signed_integral T>
constexpr IntegerRange within(IntegerRange range) {
  return {std::max<std::int64_t>(range.min, std::numeric_limits<T>::min()),
          std::min<std::int64_t>(range.max, std::numeric_limits<T>::max())};
}

struct RealRange {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool above_min = false;  // min itself is not allowed
  bool below_max = false;
};
inline constexpr RealRange not_negative{.min = 0}, below_one{.min = 0, .max = 1, .below_max = true};
/// Bounds the weight of a term of a loss: the largest one outweighs all others, and f32 does not overflow in
/// the first steps.
inline constexpr RealRange coefficient{.min = 0, .max = 1e6};
bool contains(const IntegerRange& range, std::int64_t value);
bool contains(const RealRange& range, double value);
/// "integer >= 1", "number > 0 and <= 1": the words of messages and of the reference page.
std::string describe(const IntegerRange& range);
std::string describe(const RealRange& range);

template <class T>
struct Parsed {
  std::optional<T> value;
  std::string reason;  // "has a leading zero; write 10", set when there is no value
};

/// Decimal digits with an optional minus. No leading zeros, hexadecimal, underscores, points or exponents.
Parsed<std::int64_t> parse_integer(std::string_view text);
/// A decimal number: 1, 0.5, 1e-3, 1.0e-3. Finite, no leading zeros, underscores, `.nan` or `.inf`.
Parsed<double> parse_real(std::string_view text);
/// `true` or `false`, nothing else.
Parsed<bool> parse_boolean(std::string_view text);

/// Bytes: a number and its unit, 512MiB or 1.5GB. kB MB GB TB are powers of 1000, KiB MiB GiB TiB of 1024.
Parsed<std::uint64_t> parse_memory(std::string_view text);
/// Bytes per second: 48GB/s, 25GiB/s, 100Gbit/s (8 bits a byte).
Parsed<double> parse_rate(std::string_view text);

/// The path of a file or folder as it stands. What a shell would expand is none: `~` and `~name` at its
/// beginning, `$NAME` and `${NAME}` anywhere. Taken literally it would name a folder that nobody meant.
Parsed<std::string> parse_path(std::string_view text);

}  // namespace farskip
