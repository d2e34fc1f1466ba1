// SPDX-License-Identifier: Apache-2.0
#pragma once
// A plain tiled product on the ordinary cores, for what the tensor-core kernels do not take: f32 and sizes
// that are no multiple of 8.

#include "backend/cuda/launch.cuh"

namespace farskip::cuda {

constexpr int kTile = 128, kTileDepth = 16, kTileThreads = 256;
/// Of a tile in shared memory. The four more spread what load_tile writes at once over the banks, and leave
/// each row aligned to 16 bytes.
constexpr int kTileStride = kTile + 4;

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
__device__ void load_tile(float (&tile)[kTileDepth][kTileStride], const In* x, std::int64_t size,
                          std::int64_t k, std::int64_t first, std::int64_t k0) {
  for (int i = int(threadIdx.x); i < kTile * kTileDepth; i += kTileThreads) {
    const int depth = kMajor ? i / kTile : i % kTileDepth, at = kMajor ? i % kTile : i / kTileDepth;
    const std::int64_t row = first + at, column = k0 + depth;
    const bool inside = row < size && column < k;
    tile[depth][at] = inside ? to_float(kMajor ? x[column * size + row] : x[row * k + column]) : 0.0F;
  }
}

/// Of the 8 rows or columns that a thread sums up, of 16 threads side by side: four neighbours, and four that
/// are 64 further on.
__device__ inline int tile_index(int thread, int i) {
  return i / 4 * (kTile / 2) + thread * 4 + i % 4;
}
__device__ inline void load_tile_indices(const float (&row)[kTileStride], int thread, float (&to)[8]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float4 four = *reinterpret_cast<const float4*>(&row[tile_index(thread, 4 * half)]);
    to[4 * half] = four.x;
    to[4 * half + 1] = four.y;
    to[4 * half + 2] = four.z;
    to[4 * half + 3] = four.w;
  }
}

/// The tile of c at (row0, column0), by all kTileThreads threads of a block.
template <bool kTransposeA, bool kTransposeB, class In, class Out>
__device__ void compute_tile(const TiledProduct<In, Out>& p, std::int64_t row0, std::int64_t column0) {
  alignas(16) __shared__ float a[kTileDepth][kTileStride];
  alignas(16) __shared__ float b[kTileDepth][kTileStride];
  // Each thread sums 8 x 8 elements.
  const int tx = int(threadIdx.x) % 16, ty = int(threadIdx.x) / 16;
  float sum[8][8] = {};
  for (std::int64_t k0 = 0; k0 < p.k; k0 += kTileDepth) {
    load_tile<kTransposeA>(a, p.a, p.m, p.k, row0, k0);
    load_tile<!kTransposeB>(b, p.b, p.n, p.k, column0, k0);
    __syncthreads();
#pragma unroll
    for (int depth = 0; depth < kTileDepth; ++depth) {
      float x[8], y[8];
      load_tile_indices(a[depth], ty, x);
      load_tile_indices(b[depth], tx, y);
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
    const std::int64_t row = row0 + tile_index(ty, i);
    if (row >= p.m) continue;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const std::int64_t column = column0 + tile_index(tx, j);
      if (column >= p.n) continue;
      const std::int64_t at = row * p.n + column;
      const float before = p.accumulate != nullptr ? to_float(p.accumulate[at]) : 0.0F;
      p.c[at] = from_float<Out>(sum[i][j] + before);
    }
  }
}

}  // namespace farskip::cuda
