// SPDX-License-Identifier: Apache-2.0
#pragma once
// Element types, in memory and in safetensors files.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace farskip {

enum class DType : std::uint8_t { f64, f32, bf16, f16, f8_e4m3, i64, i32, i16, i8, u16, u8, boolean };

/// Bytes of one element.
std::size_t dtype_size(DType dtype);
/// Of the types that graphs compute in, and of those that only files have.
bool is_float(DType dtype);
/// Lower-case name used in graph text and messages: f32, bf16, i32, …
std::string_view dtype_name(DType dtype);
std::optional<DType> parse_dtype(std::string_view name);

inline float bf16_to_f32(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}
/// Round to nearest even; NaN stays NaN.
inline std::uint16_t f32_to_bf16(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);
  return static_cast<std::uint16_t>((bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16);
}

}  // namespace farskip
