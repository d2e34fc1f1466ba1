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

/// The raw generator: 128 random bits for a 128-bit counter and a 64-bit key.
std::array<std::uint32_t, 4> philox4x32_10(std::array<std::uint32_t, 4> counter,
                                           std::array<std::uint32_t, 2> key);

/// 64 uniform bits. `seed` is the run's, `stream` says what the numbers are for (one parameter tensor,
/// the sampler, …), `counter` numbers the draws within the stream.
std::uint64_t uniform_u64(std::uint64_t seed, std::uint64_t stream, std::uint64_t counter);

/// Uniform in [0, 1), 53 random bits.
double uniform_double(std::uint64_t seed, std::uint64_t stream, std::uint64_t counter);

/// Standard normal by Box-Muller. Draws 2k and 2k + 1 are the cosine and sine of one generator block.
double normal(std::uint64_t seed, std::uint64_t stream, std::uint64_t counter);

/// out[i] = mean + stddev * normal(seed, stream, first + i): any split of a tensor into pieces gives the
/// same values.
void fill_normal(std::uint64_t seed, std::uint64_t stream, std::uint64_t first, double mean, double stddev,
                 std::span<float> out);

/// A 64-bit name for a stream, from text such as a parameter's name (FNV-1a): stable across versions.
std::uint64_t stream_id(std::string_view name);

}  // namespace farskip
