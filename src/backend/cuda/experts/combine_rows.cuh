// SPDX-License-Identifier: Apache-2.0
#pragma once
// Sums of the rows that each token has, wherever they lie.

#include "backend/cuda/launch.cuh"

namespace farskip::cuda {
namespace {

/// out[t] = Σ_k y[slot_row[t*K + k]], in order of k, in f32; a row of -1 counts as 0. One warp a token.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    combine_rows_kernel(const T* y, const std::int32_t* slot_row, T* out, std::int64_t tokens,
                        std::int64_t hidden, int top_k) {
  const std::int64_t token = warp_row();
  if (token >= tokens) return;
  const std::int32_t* rows = slot_row + token * top_k;
  constexpr int ahead = 4;  // rows loaded at once; they are added in order
  for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x % 32) * N; i < hidden; i += 32 * N) {
    float sum[N] = {};
    for (int first = 0; first < top_k; first += ahead) {
      Pack<T, N> packs[ahead];
#pragma unroll
      for (int k = 0; k < ahead; ++k)
        if (first + k < top_k && rows[first + k] >= 0)
          packs[k] = Pack<T, N>::load(y + rows[first + k] * hidden + i);
#pragma unroll
      for (int k = 0; k < ahead; ++k) {
        if (first + k >= top_k || rows[first + k] < 0) continue;
        float row[N];
        packs[k].unpack(row);
#pragma unroll
        for (int j = 0; j < N; ++j) sum[j] += row[j];
      }
    }
    store<N>(out + token * hidden + i, sum);
  }
}

/// y[…, H], where in y each slot is [R] → [T, H]
inline void combine_rows(const KernelCall& call, const std::int32_t* slot_row, std::int64_t top_k) {
  with_element_type(call.inputs[0].dtype, [&](auto element) {
    using T = decltype(element);
    const std::int64_t tokens = call.out_shape(0)[0], hidden = call.out_shape(0)[1];
    const bool wide = hidden % 8 == 0 && is_aligned(call.in<T>(0), call.out<T>(0));
    launch(call, wide ? combine_rows_kernel<T, 8> : combine_rows_kernel<T, 1>, warp_row_grid(tokens),
           kThreads, 0, call.in<T>(0), slot_row, call.out<T>(0), tokens, hidden, static_cast<int>(top_k));
  });
}

}  // namespace
}  // namespace farskip::cuda
