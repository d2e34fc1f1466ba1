// SPDX-License-Identifier: Apache-2.0
#pragma once
// How kernels are launched, and how they read and write rows: N elements per access (as wide as 16 bytes), in
// float registers whatever the element type; N = 1 is the path for odd sizes and unaligned addresses.

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include "backend/cuda/check.h"
#include "backend/cuda/context.h"
#include "farskip/backend/kernel.h"

namespace farskip::cuda {

using bf16 = __nv_bfloat16;

// ---- launches

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}
inline unsigned grid_size(std::int64_t blocks) {
  FARSKIP_CHECK(blocks >= 0 && blocks <= 0x7fffffff, "a grid of {} blocks", blocks);
  return static_cast<unsigned>(blocks);
}

/// An empty grid is nothing to do. The error of a launch names the kernel.
template <class... Parameters, class... Values>
void launch(cudaStream_t stream, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            std::size_t shared_bytes, const Values&... values) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  kernel<<<grid, block, shared_bytes, stream>>>(static_cast<Parameters>(values)...);
  const cudaError_t status = cudaGetLastError();
  if (status != cudaSuccess) fail_launch(status, reinterpret_cast<const void*>(kernel));
}

/// Launches on the call's stream.
template <class... Parameters, class... Values>
void launch(const KernelCall& call, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            std::size_t shared_bytes, const Values&... values) {
  launch(call.gpu->stream, kernel, grid, block, shared_bytes, values...);
}

/// Device address of the number of rows of an input; nullptr: all of them.
inline const std::int32_t* input_count(const KernelCall& call, std::size_t i) {
  return i < call.input_rows.size() ? call.input_rows[i] : nullptr;
}

/// Calls f with a value of the element type of `dtype`.
template <class F>
void with_element_type(DType dtype, const F& f) {
  if (dtype == DType::f32) return f(float{});
  FARSKIP_CHECK(dtype == DType::bf16, "no CUDA kernel for {}", dtype_name(dtype));
  f(bf16{});
}

/// Whether all addresses are aligned for 16-byte access (nullptr is).
template <class... T>
bool is_aligned(const T*... addresses) {
  return ((reinterpret_cast<std::uintptr_t>(addresses) % 16 == 0) && ...);
}

// ---- elements

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(bf16 x) {
  return __bfloat162float(x);
}
__device__ __forceinline__ void store_one(float* to, float x) {
  *to = x;
}
__device__ __forceinline__ void store_one(bf16* to, float x) {
  *to = __float2bfloat16_rn(x);
}

/// N consecutive elements as they lie in memory, of one or more 16-byte words.
template <class T, int N>
struct Pack {
  static constexpr int kWords = N * static_cast<int>(sizeof(T)) / 16;
  static_assert(N * sizeof(T) % 16 == 0);
  uint4 words[kWords];

  __device__ __forceinline__ static Pack load(const T* from) {
    Pack pack;
#pragma unroll
    for (int i = 0; i < kWords; ++i) pack.words[i] = reinterpret_cast<const uint4*>(from)[i];
    return pack;
  }
  __device__ __forceinline__ void store(T* to) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) reinterpret_cast<uint4*>(to)[i] = words[i];
  }
  __device__ __forceinline__ void unpack(float (&to)[N]) const {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const unsigned bits[4] = {words[i].x, words[i].y, words[i].z, words[i].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if constexpr (sizeof(T) == 4) {
          to[4 * i + j] = __uint_as_float(bits[j]);
        } else {
          to[8 * i + 2 * j] = __uint_as_float(bits[j] << 16);
          to[8 * i + 2 * j + 1] = __uint_as_float(bits[j] & 0xffff0000U);
        }
      }
    }
  }
  __device__ __forceinline__ void pack(const float (&from)[N]) {
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      unsigned bits[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if constexpr (sizeof(T) == 4) {
          bits[j] = __float_as_uint(from[4 * i + j]);
        } else {
          const unsigned low = __bfloat16_as_ushort(__float2bfloat16_rn(from[8 * i + 2 * j]));
          const unsigned high = __bfloat16_as_ushort(__float2bfloat16_rn(from[8 * i + 2 * j + 1]));
          bits[j] = low | (high << 16);
        }
      }
      words[i] = make_uint4(bits[0], bits[1], bits[2], bits[3]);
    }
  }
};
template <class T>
struct Pack<T, 1> {
  T word;
  __device__ __forceinline__ static Pack load(const T* from) { return {*from}; }
  __device__ __forceinline__ void store(T* to) const { *to = word; }
  __device__ __forceinline__ void unpack(float (&to)[1]) const { to[0] = to_float(word); }
  __device__ __forceinline__ void pack(const float (&from)[1]) { store_one(&word, from[0]); }
};

template <int N, class T>
__device__ __forceinline__ void load(const T* from, float (&to)[N]) {
  Pack<T, N>::load(from).unpack(to);
}
template <int N, class T>
__device__ __forceinline__ void store(T* to, const float (&from)[N]) {
  Pack<T, N> pack;
  pack.pack(from);
  pack.store(to);
}

/// 1 / (1 + e^-x); the quotient of a denominator past 2^126 is 0, which is right.
__device__ __forceinline__ float sigmoid(float x) {
  return __fdividef(1.0F, 1.0F + expf(-x));
}

// ---- rows: a group of threads each

constexpr int kThreads = 256;
constexpr int kWarpsPerBlock = kThreads / 32;

/// Rows that exist: `count` on the device where it is bounded.
__device__ __forceinline__ std::int64_t actual_rows(std::int64_t rows, const std::int32_t* count) {
  return count == nullptr ? rows : min(rows, static_cast<std::int64_t>(*count));
}
/// Row of this warp when a block of kThreads works on kWarpsPerBlock rows.
__device__ __forceinline__ std::int64_t warp_row() {
  return static_cast<std::int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / 32;
}
inline unsigned warp_row_grid(std::int64_t rows) {
  return grid_size(ceil_div(rows, kWarpsPerBlock));
}

/// Sum over a warp, in every lane, in an order that never changes.
template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffU, x, step);
  return x;
}

/// Sum over a block of `Threads`, in every thread, in an order that never changes. Two barriers: `shared` may
/// be used again at once.
template <int Threads, class T>
__device__ __forceinline__ T block_sum(T x, T (&shared)[Threads / 32]) {
  x = warp_sum(x);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  T sum = shared[0];
#pragma unroll
  for (int w = 1; w < Threads / 32; ++w) sum += shared[w];
  __syncthreads();
  return sum;
}

}  // namespace farskip::cuda
