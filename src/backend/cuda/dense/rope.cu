// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding: the table of cosines and sines, and the rotation.
#include "backend/cuda/launch.cuh"
#include "backend/rope_angles.h"

namespace farskip {
namespace cuda {
namespace {

struct Angles {
  static constexpr int kMost = 256;  // pairs of one launch
  double values[kMost];
};

/// cos and sin of pairs [first, first + num) at every position, in f64. `positions`: nullptr, or that of each
/// row.
__global__ void __launch_bounds__(kThreads)
    rope_table_kernel(const __grid_constant__ Angles angles, const std::int32_t* positions, float* table,
                      std::int64_t rows, int first, int num, int dim, double factor) {
  const std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t r = item / num;
  if (r >= rows) return;
  const int pair = static_cast<int>(item % num);
  double sine, cosine;
  sincos(static_cast<double>(positions == nullptr ? r : positions[r]) * angles.values[pair], &sine, &cosine);
  float* row = table + r * dim;
  row[first + pair] = static_cast<float>(cosine * factor);
  row[dim / 2 + first + pair] = static_cast<float>(sine * factor);
}

void run_rope_table(const KernelCall& call) {
  const auto& a = call.get<ops::RopeTable>();
  const std::vector<double> all = rope_angles(a);
  const auto* positions = call.has(0) ? call.in<std::int32_t>(0) : nullptr;
  for (std::int64_t first = 0; first < a.dim / 2; first += Angles::kMost) {
    const std::int64_t num = std::min<std::int64_t>(Angles::kMost, a.dim / 2 - first);
    Angles angles{};
    std::copy_n(all.begin() + first, num, angles.values);
    launch(call, rope_table_kernel, grid_size(ceil_div(a.positions * num, kThreads)), kThreads, 0, angles,
           positions, call.out(0), a.positions, first, num, a.dim, a.attention_factor);
  }
}

/// 1 + scale · ln(1 + ⌊(p + 1) / floor⌋), in f64.
__global__ void __launch_bounds__(kThreads)
    attention_temperature_kernel(const std::int32_t* positions, float* out, std::int64_t tokens,
                                 std::int64_t sequence_length, std::int64_t floor, double scale) {
  const std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (token >= tokens) return;
  const std::int64_t position = positions == nullptr ? token % sequence_length : positions[token];
  const auto steps = static_cast<double>((position + 1) / floor);
  out[token] = static_cast<float>(1.0 + scale * log1p(steps));
}

void run_attention_temperature(const KernelCall& call) {
  const auto& a = call.get<ops::AttentionTemperature>();
  launch(call, attention_temperature_kernel, grid_size(ceil_div(a.tokens, kThreads)), kThreads, 0,
         call.has(0) ? call.in<std::int32_t>(0) : nullptr, call.out(0), a.tokens, a.sequence_length, a.floor,
         a.scale);
}

struct RopeSizes {
  std::int64_t tokens, positions;
  int heads, head_dim, offset, dim;
  float sign;  // of the angle
};

/// Rotates the N pairs whose first and second elements are in x and y.
template <int N>
__device__ __forceinline__ void rotate(float (&x)[N], float (&y)[N], const float (&cosine)[N],
                                       const float (&sine)[N], float sign) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float first = x[i], second = y[i], s = sign * sine[i];
    x[i] = first * cosine[i] - second * s;
    y[i] = first * s + second * cosine[i];
  }
}

/// One warp a token; its lanes take pieces of N pairs of the rotated parts, then, unless the result lies in
/// place (Copied), vectors of the rest. Pieces have N pairs, N = 8 or 1.
template <class T, int N, bool Interleaved, bool Copied>
__global__ void __launch_bounds__(kThreads) rope_kernel(const T* x, const float* table, T* out, RopeSizes s) {
  const std::int64_t token = warp_row();
  if (token >= s.tokens) return;
  const int lane = static_cast<int>(threadIdx.x) % 32, pairs = s.dim / 2, pieces = pairs / N;
  const std::int64_t row = token * s.heads * s.head_dim;
  const float *cosines = table + token % s.positions * s.dim, *sines = cosines + pairs;
#pragma unroll 2
  for (int item = lane; item < s.heads * pieces; item += 32) {
    const int head = item / pieces, pair = item % pieces * N;
    const std::int64_t begin = row + static_cast<std::int64_t>(head) * s.head_dim + s.offset;
    float cosine[N], sine[N], first[N], second[N];
    load<N>(cosines + pair, cosine);
    load<N>(sines + pair, sine);
    if constexpr (Interleaved) {
      T* const to = out + begin + 2 * pair;
      load<N>(x + begin + 2 * pair, first);
      load<N>(x + begin + 2 * pair + N, second);
      float elements[2 * N];
#pragma unroll
      for (int i = 0; i < N; ++i) {
        elements[i] = first[i];
        elements[N + i] = second[i];
      }
#pragma unroll
      for (int i = 0; i < N; ++i) {
        first[i] = elements[2 * i];
        second[i] = elements[2 * i + 1];
      }
      rotate<N>(first, second, cosine, sine, s.sign);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        elements[2 * i] = first[i];
        elements[2 * i + 1] = second[i];
      }
#pragma unroll
      for (int i = 0; i < N; ++i) {
        first[i] = elements[i];
        second[i] = elements[N + i];
      }
      store<N>(to, first);
      store<N>(to + N, second);
    } else {
      load<N>(x + begin + pair, first);
      load<N>(x + begin + pairs + pair, second);
      rotate<N>(first, second, cosine, sine, s.sign);
      store<N>(out + begin + pair, first);
      store<N>(out + begin + pairs + pair, second);
    }
  }
  if constexpr (!Copied) return;
  const int rest = (s.head_dim - s.dim) / N;
#pragma unroll 2
  for (int item = lane; item < s.heads * rest; item += 32) {
    const int head = item / rest;
    int at = item % rest * N;
    if (at >= s.offset) at += s.dim;
    const std::int64_t place = row + static_cast<std::int64_t>(head) * s.head_dim + at;
    Pack<T, N>::load(x + place).store(out + place);
  }
}

template <class T, int N>
void launch_rope(const KernelCall& call, bool interleaved, const RopeSizes& sizes) {
  const T* x = call.in<T>(0);
  T* out = call.out<T>(0);
  const bool copied = x != out;
  const auto kernel = interleaved
                          ? (copied ? rope_kernel<T, N, true, true> : rope_kernel<T, N, true, false>)
                          : (copied ? rope_kernel<T, N, false, true> : rope_kernel<T, N, false, false>);
  launch(call, kernel, warp_row_grid(sizes.tokens), kThreads, 0, x, call.in(1), out, sizes);
}

// x[T, N*head_dim], table[S, dim] → rotated (may be x)
void run_rope(const KernelCall& call) {
  const auto& a = call.get<ops::Rope>();
  const RopeSizes sizes{.tokens = call.in_shape(0)[0],
                        .positions = call.in_shape(1)[0],
                        .heads = static_cast<int>(call.in_shape(0)[1] / a.head_dim),
                        .head_dim = static_cast<int>(a.head_dim),
                        .offset = static_cast<int>(a.offset),
                        .dim = static_cast<int>(a.dim),
                        .sign = a.inverse ? -1.0F : 1.0F};
  const bool wide = a.head_dim % 8 == 0 && a.offset % 8 == 0 && a.dim % 16 == 0 &&
                    is_aligned(call.inputs[0].data, call.inputs[1].data, call.outputs[0].data);
  with_element_type(call.inputs[0].dtype, [&](auto element) {
    using T = decltype(element);
    wide ? launch_rope<T, 8>(call, a.interleaved, sizes) : launch_rope<T, 1>(call, a.interleaved, sizes);
  });
}

}  // namespace
}  // namespace cuda

void register_cuda_rope(KernelTable& table);
void register_cuda_rope(KernelTable& table) {
  table.add("rope_table", DType::f32, DeviceKind::cuda, {.run = cuda::run_rope_table});
  table.add("attention_temperature", DType::f32, DeviceKind::cuda, {.run = cuda::run_attention_temperature});
  for (const DType dtype : {DType::f32, DType::bf16})
    table.add("rope", dtype, DeviceKind::cuda, {.run = cuda::run_rope});
}

}  // namespace farskip
