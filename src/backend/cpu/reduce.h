// SPDX-License-Identifier: Apache-2.0
#pragma once
// Sums inside one tile. The compiler may not reassociate, so the lanes are spelled out: they are what
// makes a sum vectorisable, and since their number is fixed the result does not depend on the machine's
// vector width, the alignment of the data or the number of threads.

#include <algorithm>
#include <cstdint>

namespace farskip::cpu {

/// Σ f(i) for i in [0, n): 32 running sums of type T (element i goes to lane i mod 32), added pairwise.
template <class T, class F>
inline T lane_sum(std::int64_t n, const F& f) {
  constexpr std::int64_t num_lanes = 32;
  T lanes[num_lanes] = {};
  std::int64_t i = 0;
  for (; i + num_lanes <= n; i += num_lanes) {
#pragma omp simd
    for (std::int64_t l = 0; l < num_lanes; ++l) lanes[l] += static_cast<T>(f(i + l));
  }
  for (std::int64_t l = 0; i + l < n; ++l) lanes[l] += static_cast<T>(f(i + l));
  for (std::int64_t half = num_lanes / 2; half > 0; half /= 2)
    for (std::int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

/// Rows of `width` elements that make one tile: about 64 KiB of f32, at least one row.
inline std::int64_t rows_per_tile(std::int64_t width) {
  return std::max<std::int64_t>(1, 16384 / std::max<std::int64_t>(1, width));
}

/// Elements of one tile of a flat loop.
constexpr std::int64_t kElementsPerTile = 16384;

}  // namespace farskip::cpu
