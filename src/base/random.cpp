// SPDX-License-Identifier: Apache-2.0
#include "farskip/base/random.h"

#include <cmath>
#include <numbers>
#include <utility>

namespace farskip {
namespace {

/// Draws 2 * pair and 2 * pair + 1.
std::pair<double, double> normal_pair(std::uint64_t seed, std::uint64_t stream, std::uint64_t pair) {
  const auto bits = uniform_bits(seed, stream, pair);
  // 1 - u is in (0, 1], so the logarithm is finite.
  const double radius = std::sqrt(-2.0 * std::log(1.0 - to_unit(bits[0])));
  const double angle = 2.0 * std::numbers::pi * to_unit(bits[1]);
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

}  // namespace

double normal(std::uint64_t seed, std::uint64_t stream, std::uint64_t counter) {
  const auto [even, odd] = normal_pair(seed, stream, counter / 2);
  return counter % 2 == 0 ? even : odd;
}

void fill_normal(std::uint64_t seed, std::uint64_t stream, std::uint64_t first, double mean, double stddev,
                 std::span<float> out) {
  std::size_t i = 0;
  while (i < out.size()) {
    const std::uint64_t counter = first + i;
    const auto [even, odd] = normal_pair(seed, stream, counter / 2);
    if (counter % 2 == 0) out[i++] = static_cast<float>(mean + stddev * even);
    if (i < out.size()) out[i++] = static_cast<float>(mean + stddev * odd);
  }
}

std::uint64_t stream_id(std::string_view name) {
  std::uint64_t hash = 0xcbf29ce484222325U;
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3U;
  return hash;
}

}  // namespace farskip
