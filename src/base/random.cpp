// SPDX-License-Identifier: Apache-2.0
#include "farskip/base/random.h"

#include <cmath>
#include <numbers>
#include <utility>

namespace farskip {
namespace {

std::array<std::uint32_t, 4> block_at(std::uint64_t seed, std::uint64_t stream, std::uint64_t counter) {
  const auto low = [](std::uint64_t x) { return static_cast<std::uint32_t>(x); };
  const auto high = [](std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); };
  return philox4x32_10({low(counter), high(counter), low(stream), high(stream)}, {low(seed), high(seed)});
}

std::uint64_t join(std::uint32_t low, std::uint32_t high) {
  return static_cast<std::uint64_t>(high) << 32 | low;
}

double to_unit(std::uint64_t bits) {
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

/// Draws 2 * pair and 2 * pair + 1.
std::pair<double, double> normal_pair(std::uint64_t seed, std::uint64_t stream, std::uint64_t pair) {
  const auto bits = block_at(seed, stream, pair);
  // 1 - u is in (0, 1], so the logarithm is finite.
  const double radius = std::sqrt(-2.0 * std::log(1.0 - to_unit(join(bits[0], bits[1]))));
  const double angle = 2.0 * std::numbers::pi * to_unit(join(bits[2], bits[3]));
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

}  // namespace

std::array<std::uint32_t, 4> philox4x32_10(std::array<std::uint32_t, 4> counter,
                                           std::array<std::uint32_t, 2> key) {
  constexpr std::uint64_t kMultiplier0 = 0xD2511F53U, kMultiplier1 = 0xCD9E8D57U;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9U, kWeyl1 = 0xBB67AE85U;
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = kMultiplier0 * counter[0];
    const std::uint64_t product1 = kMultiplier1 * counter[2];
    counter = {static_cast<std::uint32_t>(product1 >> 32) ^ counter[1] ^ key[0],
               static_cast<std::uint32_t>(product1),
               static_cast<std::uint32_t>(product0 >> 32) ^ counter[3] ^ key[1],
               static_cast<std::uint32_t>(product0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

std::uint64_t uniform_u64(std::uint64_t seed, std::uint64_t stream, std::uint64_t counter) {
  const auto bits = block_at(seed, stream, counter);
  return join(bits[0], bits[1]);
}

double uniform_double(std::uint64_t seed, std::uint64_t stream, std::uint64_t counter) {
  return to_unit(uniform_u64(seed, stream, counter));
}

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
