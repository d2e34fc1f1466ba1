#pragma once
// Texts of single values: numbers, true and false, sizes in bytes, rates. Each function gives a value or the
// reason why there is none; the caller adds where the text stands and what is allowed.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace farskip {

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

}  // namespace farskip
