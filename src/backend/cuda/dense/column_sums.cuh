// SPDX-License-Identifier: Apache-2.0
#pragma once
// Sums over rows: gradients of vectors that every row reads.

#include "backend/cuda/launch.cuh"

namespace farskip::cuda {

constexpr int kSumLanes = 32, kSumColumns = 32;

/// Lanes of rows first, then the lanes: an order that never changes.
template <class T>
__global__ void __launch_bounds__(kSumLanes* kSumColumns)
    sum_columns_kernel(const T* x, const float* before, float* sums, std::int64_t rows, std::int64_t width) {
  __shared__ double lanes[kSumLanes][kSumColumns + 1];
  const int lane = static_cast<int>(threadIdx.x) / kSumColumns,
            place = static_cast<int>(threadIdx.x) % kSumColumns;
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kSumColumns + place;
  double sum = 0.0;
  if (column < width) {
#pragma unroll 4
    for (std::int64_t row = lane; row < rows; row += kSumLanes)
      sum += static_cast<double>(to_float(x[row * width + column]));
  }
  lanes[lane][place] = sum;
  __syncthreads();
  if (lane != 0 || column >= width) return;
  double total = before != nullptr ? static_cast<double>(before[column]) : 0.0;
  for (int i = 0; i < kSumLanes; ++i) total += lanes[i][place];
  sums[column] = static_cast<float>(total);
}

/// sums[i] = before[i] + Σ x[row, i] over the rows, in f64. `before` may be nullptr, or `sums` itself.
template <class T>
void sum_columns(const KernelCall& call, const T* x, std::int64_t rows, std::int64_t width,
                 const float* before, float* sums) {
  launch(call, sum_columns_kernel<T>, grid_size(ceil_div(width, kSumColumns)), kSumLanes * kSumColumns, 0, x,
         before, sums, rows, width);
}

}  // namespace farskip::cuda
