// SPDX-License-Identifier: Apache-2.0
#pragma once
// A plain tiled product on the ordinary cores, for what the tensor-core kernels do not take: f32 and sizes
// that are no multiple of 8.

#include "backend/cuda/launch.cuh"

namespace farskip::cuda {

constexpr int kTile = 128, kTileDepth = 16, kTileThreads = 256;

/// c[m, n] = op(a) · op(b) (+ accumulate), row-major: transposed a is stored [k, m], transposed b [n, k].
/// Elements of a and b are In, of c and accumulate Out; sums are f32, in order of k.
template <class In, class Out>
struct TiledProduct {
  std::int64_t m, n, k;
  const In* a;
  const In* b;
  const Out* accumulate;  // or nullptr; may be c
  Out* c;
};

template <class T>
__device__ T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline bf16 from_float<bf16>(float x) {
  return __float2bfloat16_rn(x);
}

/// tile[depth][i] = element (first + i, k0 + depth) of an operand whose `size` rows of `k` are stored one
/// after the other, or (kMajor) whose k rows of `size` are; 0 outside.
template <bool kMajor, class In>
__device__ void load_tile(float (&tile)[kTileDepth][kTile], const In* x, std::int64_t size, std::int64_t k,
                          std::int64_t first, std::int64_t k0) {
  for (int i = int(threadIdx.x); i < kTile * kTileDepth; i += kTileThreads) {
    const int depth = kMajor ? i / kTile : i % kTileDepth, at = kMajor ? i % kTile : i / kTileDepth;
    const std::int64_t row = first + at, column = k0 + depth;
    const bool inside = row < size && column < k;
    tile[depth][at] = inside ? to_float(kMajor ? x[column * size + row] : x[row * k + column]) : 0.0F;
  }
}

/// The tile of c at (row0, column0), by all kTileThreads threads of a block.
template <bool kTransposeA, bool kTransposeB, class In, class Out>
__device__ void compute_tile(const TiledProduct<In, Out>& p, std::int64_t row0, std::int64_t column0) {
  __shared__ float a[kTileDepth][kTile], b[kTileDepth][kTile];
  // Each thread sums 8 x 8 elements: rows and columns tx + 16 i, so that a warp's reads spread over all
  // banks.
  const int tx = int(threadIdx.x) % 16, ty = int(threadIdx.x) / 16;
  float sum[8][8] = {};
  for (std::int64_t k0 = 0; k0 < p.k; k0 += kTileDepth) {
    load_tile<kTransposeA>(a, p.a, p.m, p.k, row0, k0);
    load_tile<!kTransposeB>(b, p.b, p.n, p.k, column0, k0);
    __syncthreads();
#pragma unroll
    for (int depth = 0; depth < kTileDepth; ++depth) {
      float x[8], y[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        x[i] = a[depth][ty + 16 * i];
        y[i] = b[depth][tx + 16 * i];
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
#pragma unroll
        for (int j = 0; j < 8; ++j) sum[i][j] += x[i] * y[j];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const std::int64_t row = row0 + ty + 16 * i;
    if (row >= p.m) continue;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const std::int64_t column = column0 + tx + 16 * j;
      if (column >= p.n) continue;
      const std::int64_t at = row * p.n + column;
      const float before = p.accumulate != nullptr ? to_float(p.accumulate[at]) : 0.0F;
      p.c[at] = from_float<Out>(sum[i][j] + before);
    }
  }
}

}  // namespace farskip::cuda
