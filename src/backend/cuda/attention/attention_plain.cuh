// SPDX-License-Identifier: Apache-2.0
#pragma once
// Causal attention by blocks with an online softmax (Dao et al. 2022, arXiv 2205.14135), in f32 on the
// ordinary cores: for f32, and for masks and head sizes that cuDNN lacks. Every sum has one order. Blocks of
// rows lie in shared memory; what both directions need stands here.

#include <cmath>

#include "backend/cuda/attention/attention.h"
#include "backend/cuda/tiled_product.cuh"

namespace farskip::cuda::plain {

constexpr float kLowest = -INFINITY;

/// Length of a row in shared memory: an odd number of words, so that the elements of a column lie in
/// different banks.
__host__ __device__ constexpr int odd(std::int64_t n) {
  return int(n) | 1;
}

/// rows x size elements to shared memory; rows past `available` become 0.
template <int kBlock, class T>
__device__ void load_rows(const T* from, std::int64_t stride, std::int64_t available, int size, float* to,
                          int ld) {
  for (int i = int(threadIdx.x); i < kBlock * size; i += kThreads) {
    const int row = i / size, column = i % size;
    to[row * ld + column] = row < available ? to_float(from[row * stride + column]) : 0.0F;
  }
}

__device__ inline void clear(float* x, int n) {
  for (int i = int(threadIdx.x); i < n; i += kThreads) x[i] = 0.0F;
}

/// store(r, c, Σ_k x[r][k] y[c][k]) for all r, c of a block.
template <int kBlock, class Store>
__device__ void multiply_rows(const float* x, const float* y, int ld, int depth, const Store& store) {
  constexpr int kEach = kBlock / 16;
  const int tx = int(threadIdx.x) % 16, ty = int(threadIdx.x) / 16;
  float sum[kEach][kEach] = {};
  for (int k = 0; k < depth; ++k) {
    float a[kEach], b[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      a[i] = x[(ty + 16 * i) * ld + k];
      b[i] = y[(tx + 16 * i) * ld + k];
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) sum[i][j] += a[i] * b[j];
    }
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) store(ty + 16 * i, tx + 16 * j, sum[i][j]);
  }
}

/// acc[r][c] = acc[r][c] * factor[r] + Σ_j w[r][j] y[j][c] for c < size (kTranspose: w[j][r]); factor may be
/// nullptr.
template <int kBlock, bool kTranspose>
__device__ void add_product(const float* w, int ldw, const float* y, int ld, int size, const float* factor,
                            float* acc) {
  constexpr int kEach = kBlock / 16;
  const int tx = int(threadIdx.x) % 16, ty = int(threadIdx.x) / 16;
  for (int c0 = 0; c0 < size; c0 += 64) {
    float sum[kEach][4] = {};
    for (int j = 0; j < kBlock; ++j) {
      float a[kEach], b[4];
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int r = ty + 16 * i;
        a[i] = kTranspose ? w[j * ldw + r] : w[r * ldw + j];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int c = c0 + tx + 16 * i;
        b[i] = c < size ? y[j * ld + c] : 0.0F;
      }
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int jj = 0; jj < 4; ++jj) sum[i][jj] += a[i] * b[jj];
      }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int r = ty + 16 * i;
      const float scale = factor != nullptr ? factor[r] : 1.0F;
#pragma unroll
      for (int jj = 0; jj < 4; ++jj) {
        const int c = c0 + tx + 16 * jj;
        if (c < size) acc[r * ld + c] = acc[r * ld + c] * scale + sum[i][jj];
      }
    }
  }
}

/// Smallest first key of queries [i0, end), by all threads of the block.
template <int kBlock>
__device__ std::int64_t first_key_of_block(const AttentionProblem& p, std::int64_t sequence,
                                           std::int64_t i0) {
  __shared__ int first;
  if (threadIdx.x == 0) first = int(i0);
  __syncthreads();
  if (threadIdx.x < kBlock && i0 + threadIdx.x < p.length)
    atomicMin(&first, int(p.first_key(sequence, i0 + threadIdx.x)));
  __syncthreads();
  const int result = first;
  __syncthreads();  // before the next call sets it again
  return result;
}

constexpr std::size_t kMaxSharedBytes =
    (227 << 10) - 64;  // a block of sm_90 may have 227 KiB, some of it static

template <class Kernel>
void allow_shared(Kernel kernel, std::size_t bytes) {
  FARSKIP_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
}

inline dim3 grid_of(const AttentionProblem& p, int block, std::int64_t heads) {
  return dim3(unsigned(p.sequences * heads), unsigned(ceil_div(p.length, block)));
}

}  // namespace farskip::cuda::plain
