// SPDX-License-Identifier: Apache-2.0
#pragma once
// Sampling's arithmetic on a row's options and on one logit, for kernels on any device: the same bits on
// each.
//
// Each step is an operation on integers or one that IEEE 754 rounds in one way. Products that go into a sum
// are written as fused multiply-adds, which leaves a compiler nothing to fuse.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "backend/order_key.h"
#include "farskip/base/random.h"

namespace farskip::sampling {

/// Mass of the most likely id; a mass is a probability in these units. 2^22 ids sum to 2^62 at most.
constexpr std::uint64_t kOneMass = std::uint64_t{1} << 40;
constexpr std::uint64_t kStream = 0x73616d706c65;  // "sample"

/// Keys are searched for digit by digit from the top, 11 bits at a time. The last digit begins with a bit of
/// the one before.
constexpr int kDigits = 3, kBins = 2048;
constexpr int shift_of(int digit) {
  return digit == 0 ? 21 : digit == 1 ? 10 : 0;
}

/// One row of the inputs `real` and `whole` of the op.
struct RowOptions {
  float temperature, top_p, min_p, repetition_penalty;
  std::int32_t top_k;
  std::uint64_t seed, counter;

  static constexpr RowOptions read(const float* real, const std::int32_t* whole) {
    const auto word = [&](int i) { return static_cast<std::uint64_t>(static_cast<std::uint32_t>(whole[i])); };
    return {real[0], real[1], real[2], real[3], whole[0], word(1) | word(2) << 32, word(3)};
  }
  /// How many ids top_k keeps of n; 0: all.
  constexpr std::uint64_t kept_of(std::int32_t n) const {
    return top_k > 0 && top_k < n ? static_cast<std::uint64_t>(top_k) : 0;
  }
  constexpr bool has_top_p() const { return top_p < 1.0F; }
  /// The mass that top_p keeps at least, of the mass `total` of what is left.
  constexpr std::uint64_t nucleus(std::uint64_t total) const {
    const double wanted = std::ceil(static_cast<double>(top_p) * static_cast<double>(total));
    return std::clamp(wanted > 1.0 ? static_cast<std::uint64_t>(wanted) : 1, std::uint64_t{1}, total);
  }
  /// The smallest mass that min_p keeps.
  constexpr std::uint64_t least_mass() const {
    const float share = min_p > 0.0F ? std::min(min_p, 1.0F) : 0.0F;
    return static_cast<std::uint64_t>(std::ceil(share * static_cast<float>(kOneMass)));
  }
  /// A point of [0, total): the id is the one at which the cumulated masses first exceed it.
  constexpr std::uint64_t point(std::uint64_t total) const {
    const double at = uniform_double(seed, kStream, counter) * static_cast<double>(total);
    return std::min(static_cast<std::uint64_t>(at), total - 1);
  }
};

/// The logit of an id that stands in the text already.
constexpr float penalised(float logit, float penalty) {
  return logit > 0.0F ? logit / penalty : std::fma(logit, penalty, 0.0F);
}

/// The order of logits; NaN is the largest.
constexpr std::uint32_t logit_key(float logit) {
  return logit != logit ? ~0U : order_key(logit);
}
/// The row has something to choose from if its largest key is a number (not -inf, +inf or NaN).
constexpr bool is_choice(std::uint32_t largest) {
  return largest > order_key(-std::numeric_limits<float>::infinity()) &&
         largest < order_key(std::numeric_limits<float>::infinity());
}

/// Mass of logits by their distance to the largest one.
struct Masses {
  float largest, scale;

  constexpr Masses(std::uint32_t largest_key, float temperature)
      : largest(float_of_key(largest_key)),
        scale(std::min(std::numbers::log2e_v<float> / temperature, std::numeric_limits<float>::max())) {}

  /// 2^((logit - largest) scale) in units of 2^-40, rounded down.
  constexpr std::uint64_t of(float logit) const {
    const float distance = logit - largest;
    if (!(distance * scale > -40.5F)) return 0;
    constexpr float to_integer = 12582912.0F;  // 1.5 * 2^23: adding it rounds to an integer
    const float whole = std::fma(distance, scale, to_integer) - to_integer;
    const float power = power_of_two(std::fma(distance, scale, -whole));
    // Into the exponent's bits, which is exact: the power is 0.7 at least and the exponent -1.
    const std::int32_t exponent = static_cast<std::int32_t>(whole) + 40;
    return static_cast<std::uint64_t>(
        std::bit_cast<float>(std::bit_cast<std::int32_t>(power) + exponent * (1 << 23)));
  }

 private:
  /// 2^x for |x| <= 1/2 by its Taylor series: relative error 2e-7, exact at 0.
  static constexpr float power_of_two(float x) {
    constexpr double ln2 = std::numbers::ln2;
    constexpr double c2 = ln2 * ln2 / 2, c3 = c2 * ln2 / 3, c4 = c3 * ln2 / 4, c5 = c4 * ln2 / 5;
    float sum = static_cast<float>(c5 * ln2 / 6);
    sum = std::fma(sum, x, static_cast<float>(c5));
    sum = std::fma(sum, x, static_cast<float>(c4));
    sum = std::fma(sum, x, static_cast<float>(c3));
    sum = std::fma(sum, x, static_cast<float>(c2));
    sum = std::fma(sum, x, static_cast<float>(ln2));
    return std::fma(sum, x, 1.0F);
  }
};

}  // namespace farskip::sampling
