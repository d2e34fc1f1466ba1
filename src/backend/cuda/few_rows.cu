// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "backend/cuda/few_rows.h"
#include "backend/cuda/launch.cuh"

namespace farskip::cuda {
namespace {

constexpr int kColumns = 4;                     // of a warp
constexpr int kMostRows = 8;                    // at once; more read the weights again
constexpr int kElements = 8;                    // of a lane, in one access
constexpr std::int64_t kMostRowsOfOne = 4;      // where there is one group: beyond it tensor cores are faster
constexpr std::int64_t kMostRowsAtTheMean = 2;  // where there are several

/// Which rows and weights a block works on.
struct Group {
  std::int64_t first = 0, end = 0, index = 0;
};

/// The group number `wanted` of those that have rows; without rows where there are fewer. For whole warps.
__device__ Group find_group(const std::int32_t* offsets, int groups, int wanted) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int base = 0; base < groups; base += 32) {
    const int g = base + lane;
    const unsigned has_rows = __ballot_sync(0xffffffffU, g < groups && offsets[g + 1] > offsets[g]);
    const int count = __popc(has_rows);
    if (wanted < count) {
      const int found = base + static_cast<int>(__fns(has_rows, 0, wanted + 1));
      return {offsets[found], offsets[found + 1], found};
    }
    wanted -= count;
  }
  return {};
}

/// Rows [row, row + Rows) of x, those past `end` repeated, times kColumns columns.
template <int Rows, class Out>
__device__ void multiply_rows(const FewRowsProduct& p, const bf16* w, std::int64_t row, std::int64_t end,
                              std::int64_t column) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto* x = static_cast<const bf16*>(p.x);
  float sums[Rows][kColumns] = {};
  constexpr int steps = Rows <= 2 ? 4 : 1;  // whose weights are on their way at once, as registers allow
#pragma unroll steps
  for (std::int64_t at = lane * kElements; at < p.k; at += 32 * kElements) {
    Pack<bf16, kElements> weights[kColumns];
#pragma unroll
    for (int c = 0; c < kColumns; ++c)
      weights[c] = Pack<bf16, kElements>::load(w + min(column + c, p.n - 1) * p.k + at);
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      float values[kElements];
      load<kElements>(x + min(row + r, end - 1) * p.k + at, values);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        float factors[kElements];
        weights[c].unpack(factors);
#pragma unroll
        for (int i = 0; i < kElements; ++i) sums[r][c] = fmaf(values[i], factors[i], sums[r][c]);
      }
    }
  }
  float mine = 0.0F;  // the sum that this lane writes
#pragma unroll
  for (int r = 0; r < Rows; ++r)
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const float sum = warp_sum(sums[r][c]);
      if (lane == r * kColumns + c) mine = sum;
    }
  const std::int64_t r = row + lane / kColumns, c = column + lane % kColumns;
  if (lane < Rows * kColumns && r < end && c < p.n) store_one(static_cast<Out*>(p.out) + r * p.n + c, mine);
}

template <class Out>
__global__ void __launch_bounds__(kThreads) few_rows_kernel(const __grid_constant__ FewRowsProduct p) {
  const Group group = p.offsets == nullptr
                          ? Group{0, p.rows, 0}
                          : find_group(p.offsets, static_cast<int>(p.groups), static_cast<int>(blockIdx.y));
  const std::int64_t column = warp_row() * kColumns;
  if (column >= p.n) return;
  const bf16* w = static_cast<const bf16*>(p.w) + group.index * p.n * p.k;
  for (std::int64_t row = group.first; row < group.end; row += kMostRows) {
    const std::int64_t count = group.end - row;
    if (count == 1)
      multiply_rows<1, Out>(p, w, row, group.end, column);
    else if (count == 2)
      multiply_rows<2, Out>(p, w, row, group.end, column);
    else if (count <= 4)
      multiply_rows<4, Out>(p, w, row, group.end, column);
    else
      multiply_rows<kMostRows, Out>(p, w, row, group.end, column);
  }
}

}  // namespace

bool fits_few_rows(const FewRowsProduct& p) {
  const std::int64_t most = p.groups == 1 ? kMostRowsOfOne : kMostRowsAtTheMean * p.groups;
  return p.rows > 0 && p.rows <= most && p.k % kElements == 0 && is_aligned(p.x, p.w);
}

void run_few_rows(const KernelCall& call, const FewRowsProduct& p) {
  const dim3 grid(warp_row_grid(ceil_div(p.n, kColumns)), static_cast<unsigned>(std::min(p.rows, p.groups)));
  launch(call, p.wide ? few_rows_kernel<float> : few_rows_kernel<bf16>, grid, kThreads, 0, p);
}

}  // namespace farskip::cuda
