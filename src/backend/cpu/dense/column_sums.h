// SPDX-License-Identifier: Apache-2.0
#pragma once
// Sums over rows: gradients of vectors that every row reads.

#include <algorithm>

#include "backend/cpu/parallel.h"

namespace farskip::cpu {

/// sums[i] = before[i] + Σ x[row, i] over the rows, in f64 and in their order. `before` may be nullptr, or
/// `sums` itself.
inline void sum_columns(const float* x, std::int64_t rows, std::int64_t width, const float* before,
                        float* sums) {
  constexpr std::int64_t columns_per_tile = 64;
  parallel_ranges(width, columns_per_tile, [&](std::int64_t begin, std::int64_t end) {
    double totals[columns_per_tile] = {};
    for (std::int64_t row = 0; row < rows; ++row) {
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) totals[i - begin] += static_cast<double>(x[row * width + i]);
    }
    for (std::int64_t i = begin; i < end; ++i)
      sums[i] =
          static_cast<float>((before != nullptr ? static_cast<double>(before[i]) : 0.0) + totals[i - begin]);
  });
}

}  // namespace farskip::cpu
