// SPDX-License-Identifier: Apache-2.0
#pragma once
// An order of floats as that of integers, for kernels on any device that select by digits.

#include <bit>
#include <cstdint>

namespace farskip {

/// Larger floats have larger keys; -0 is 0.
constexpr std::uint32_t order_key(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x == 0.0F ? 0.0F : x);
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffU : 0x80000000U);
}

/// The float that has this key.
constexpr float float_of_key(std::uint32_t key) {
  return std::bit_cast<float>(key ^ ((key >> 31) != 0 ? 0x80000000U : 0xffffffffU));
}

}  // namespace farskip
