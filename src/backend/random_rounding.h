// SPDX-License-Identifier: Apache-2.0
#pragma once
// Stochastic rounding to bf16, the same on every device: an element's random bits follow from a counter, so a
// run repeats, and layouts round alike.

#include <array>
#include <bit>
#include <cstdint>

#include "farskip/base/random.h"
#include "farskip/ops/optimizer_ops.h"

namespace farskip {

/// Random bits of what an optimizer keeps of one parameter, in one step. Element `position` of the whole
/// parameter has word position % 4 of block position / 4: the lower 16 bits for its first state, the upper 16
/// for its second.
struct RoundingBits {
  using Block = std::array<std::uint32_t, 4>;

  constexpr RoundingBits(const ops::StateRounding& rounding, float step_number)
      : seed(static_cast<std::uint64_t>(rounding.seed)),
        stream(static_cast<std::uint32_t>(rounding.stream)),
        step(static_cast<std::uint32_t>(step_number)) {}

  constexpr Block block(std::uint64_t number) const {
    return philox4x32_10(
        {static_cast<std::uint32_t>(number), static_cast<std::uint32_t>(number >> 32), stream, step},
        {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  }
  constexpr std::uint32_t word(std::uint64_t position) const { return block(position / 4)[position % 4]; }

  std::uint64_t seed;
  std::uint32_t stream, step;
};

/// The bf16 number below or above `value`, each as often as `value` is near to it: `random16` is uniform in
/// [0, 2^16). A number of bf16 stays as it is; what is beyond the largest becomes that, not infinity.
constexpr std::uint16_t round_at_random(float value, std::uint32_t random16) {
  constexpr std::uint32_t exponent = 0x7f80'0000U, largest = 0x7f7f'0000U;
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t size = bits & 0x7fff'ffffU;
  if (size > exponent) return static_cast<std::uint16_t>((bits >> 16) | 0x40U);  // NaN stays NaN
  const std::uint32_t moved = size >= largest ? size : size + random16;
  return static_cast<std::uint16_t>((moved | (bits & 0x8000'0000U)) >> 16);
}

}  // namespace farskip
