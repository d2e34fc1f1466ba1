// SPDX-License-Identifier: Apache-2.0
#pragma once
// Counter-based random numbers: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers:
// as easy as 1, 2, 3", SC 2011). Every number is a pure function of (seed, stream, counter), so there is
// no state to save and no order in which numbers must be drawn.

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

namespace farskip {

/// The raw generator: 128 random bits for a 128-bit counter and a 64-bit key. Kernels call it on any device.
constexpr std::array<std::uint32_t, 4> philox4x32_10(std::array<std::uint32_t, 4> counter,
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

/// 128 uniform bits, as two numbers: one block of the generator.
constexpr std::array<std::uint64_t, 2> uniform_bits(std::uint64_t seed, std::uint64_t stream,
                                                    std::uint64_t counter) {
  const auto low = [](std::uint64_t x) { return static_cast<std::uint32_t>(x); };
  const auto high = [](std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); };
  const std::array<std::uint32_t, 4> bits =
      philox4x32_10({low(counter), high(counter), low(stream), high(stream)}, {low(seed), high(seed)});
  return {std::uint64_t{bits[1]} << 32 | bits[0], std::uint64_t{bits[3]} << 32 | bits[2]};
}

/// The number in [0, 1) that the upper 53 bits stand for.
constexpr double to_unit(std::uint64_t bits) {
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

/// 64 uniform bits. `seed` is the run's, `stream` says what the numbers are for (one parameter tensor,
/// the sampler, …), `counter` numbers the draws within the stream.
constexpr std::uint64_t uniform_u64(std::uint64_t seed, std::uint64_t stream, std::uint64_t counter) {
  return uniform_bits(seed, stream, counter)[0];
}

/// Uniform in [0, 1), 53 random bits.
constexpr double uniform_double(std::uint64_t seed, std::uint64_t stream, std::uint64_t counter) {
  return to_unit(uniform_u64(seed, stream, counter));
}

/// Standard normal by Box-Muller. Draws 2k and 2k + 1 are the cosine and sine of one generator block.
double normal(std::uint64_t seed, std::uint64_t stream, std::uint64_t counter);

/// Normal numbers of mean 0 for the elements of a tensor: element i is stddev * normal(seed, stream, first +
/// i). Of a part of a matrix: rows of `row_length` elements, and each begins `row_stride` draws behind the
/// one before (row_length 0: all elements are consecutive).
struct NormalNumbers {
  std::uint64_t seed = 0, stream = 0, first = 0;
  double stddev = 1.0;
  std::int64_t row_length = 0, row_stride = 0;
};

/// out[i] = mean + stddev * normal(seed, stream, first + i): any split of a tensor into pieces gives the
/// same values.
void fill_normal(std::uint64_t seed, std::uint64_t stream, std::uint64_t first, double mean, double stddev,
                 std::span<float> out);

/// A 64-bit name for a stream, from text such as a parameter's name (FNV-1a): stable across versions.
std::uint64_t stream_id(std::string_view name);

}  // namespace farskip
