// SPDX-License-Identifier: Apache-2.0
#pragma once
// Branch-free f32 functions that GCC turns into vector code inside a loop (`#pragma omp simd`); libm's
// would be calls. Same result on every lane width, so vectorised bodies and their remainders agree.

#include <bit>
#include <cstdint>

namespace farskip::cpu {

/// e^x, relative error below 2^-23 for results that are normal numbers; smaller results are 0, larger
/// ones infinity; NaN stays NaN. x = n ln 2 + r with |r| <= ln(2)/2, then a minimax polynomial in r.
inline float fast_exp(float x) {
  constexpr float lowest = -87.33654F;       // ln of the smallest normal number
  constexpr float highest = 88.72283F;       // ln of the largest number
  constexpr float to_integer = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
  constexpr float log2_e = 1.44269504088896341F;
  constexpr float ln2_high = 0.693359375F, ln2_low = -2.12194440e-4F;
  const float shifted = x * log2_e + to_integer;
  const float n = shifted - to_integer;
  const float r = (x - n * ln2_high) - n * ln2_low;
  float p = 1.9875691500e-4F;
  p = p * r + 1.3981999507e-3F;
  p = p * r + 8.3334519073e-3F;
  p = p * r + 4.1665795894e-2F;
  p = p * r + 1.6666665459e-1F;
  p = p * r + 5.0000001201e-1F;
  p = p * (r * r) + (r + 1.0F);
  // 2^n goes into the exponent bits directly: exact for every normal result, n = 128 included.
  std::uint32_t bits = std::bit_cast<std::uint32_t>(p) + (std::bit_cast<std::uint32_t>(shifted) << 23);
  // Masks rather than conditional expressions, which GCC 12 turns back into branches on AVX2.
  constexpr std::uint32_t infinity = 0x7f800000U, quiet_nan = 0x7fc00000U;
  const std::uint32_t too_large = -static_cast<std::uint32_t>(x > highest);
  bits &= static_cast<std::uint32_t>(x < lowest) - 1U;
  bits = (bits & ~too_large) | (infinity & too_large);
  bits |= quiet_nan & -static_cast<std::uint32_t>(x != x);
  return std::bit_cast<float>(bits);
}

/// 1 / (1 + e^-x).
inline float fast_sigmoid(float x) {
  return 1.0F / (1.0F + fast_exp(-x));
}

/// x * sigmoid(x).
inline float silu(float x) {
  return x * fast_sigmoid(x);
}

/// d silu(x) / dx = s (1 + x (1 - s)) with s = sigmoid(x).
inline float silu_grad(float x) {
  const float s = fast_sigmoid(x);
  return s * (1.0F + x * (1.0F - s));
}

}  // namespace farskip::cpu
