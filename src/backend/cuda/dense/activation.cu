// SPDX-License-Identifier: Apache-2.0
// SwiGLU: silu(gate) · up, optionally times the routing weight of the row. One warp a row.
#include "backend/cuda/launch.cuh"

namespace farskip {
namespace cuda {
namespace {

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    swiglu_kernel(const T* x, const float* weights, T* out, std::int64_t rows, std::int64_t width,
                  const std::int32_t* count) {
  const std::int64_t row = warp_row();
  if (row >= actual_rows(rows, count)) return;
  const T *gate = x + row * 2 * width, *up = gate + width;
  const float weight = weights != nullptr ? weights[row] : 1.0F;
#pragma unroll 2
  for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x % 32) * N; i < width; i += 32 * N) {
    float g[N], u[N];
    load<N>(gate + i, g);
    load<N>(up + i, u);
#pragma unroll
    for (int j = 0; j < N; ++j) u[j] = g[j] * sigmoid(g[j]) * u[j] * weight;
    store<N>(out + row * width + i, u);
  }
}

/// dx may be x: a warp has read what it overwrites.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    swiglu_grad_kernel(const T* dy, const T* x, const float* weights, T* dx, float* d_weights,
                       std::int64_t rows, std::int64_t width, const std::int32_t* count) {
  const std::int64_t row = warp_row();
  if (row >= actual_rows(rows, count)) return;
  const T *gate = x + row * 2 * width, *up = gate + width;
  T *d_gate = dx + row * 2 * width, *d_up = d_gate + width;
  const float weight = weights != nullptr ? weights[row] : 1.0F;
  float sum = 0.0F;
  for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x % 32) * N; i < width; i += 32 * N) {
    float d[N], g[N], u[N];
    load<N>(dy + row * width + i, d);
    load<N>(gate + i, g);
    load<N>(up + i, u);
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float s = sigmoid(g[j]), silu = g[j] * s, weighted = d[j] * weight;
      sum += d[j] * (silu * u[j]);
      g[j] = weighted * u[j] * (s * (1.0F + g[j] * (1.0F - s)));
      u[j] = weighted * silu;
    }
    store<N>(d_gate + i, g);
    store<N>(d_up + i, u);
  }
  if (d_weights == nullptr) return;
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) d_weights[row] = sum;
}

// x[T, 2I] (gate, up), [row_weight[T]] → [T, I]
void run_swiglu(const KernelCall& call) {
  with_element_type(call.inputs[0].dtype, [&](auto element) {
    using T = decltype(element);
    const std::int64_t rows = call.out_shape(0)[0], width = call.out_shape(0)[1];
    const bool wide = width % 8 == 0 && is_aligned(call.in<T>(0), call.out<T>(0));
    launch(call, wide ? swiglu_kernel<T, 8> : swiglu_kernel<T, 1>, warp_row_grid(rows), kThreads, 0,
           call.in<T>(0), call.has(1) ? call.in(1) : nullptr, call.out<T>(0), rows, width,
           input_count(call, 0));
  });
}

// dy[T, I], x[T, 2I], [row_weight[T]] → dx[T, 2I], d_row_weight[T]
void run_swiglu_grad(const KernelCall& call) {
  with_element_type(call.inputs[0].dtype, [&](auto element) {
    using T = decltype(element);
    const std::int64_t rows = call.in_shape(0)[0], width = call.in_shape(0)[1];
    const bool wide = width % 8 == 0 && is_aligned(call.in<T>(0), call.in<T>(1), call.out<T>(0));
    launch(call, wide ? swiglu_grad_kernel<T, 8> : swiglu_grad_kernel<T, 1>, warp_row_grid(rows), kThreads, 0,
           call.in<T>(0), call.in<T>(1), call.has(2) ? call.in(2) : nullptr, call.out<T>(0),
           call.has(2) ? call.out(1) : nullptr, rows, width, input_count(call, 1));
  });
}

}  // namespace
}  // namespace cuda

void register_cuda_activation(KernelTable& table);
void register_cuda_activation(KernelTable& table) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    table.add("swiglu", dtype, DeviceKind::cuda, {.run = cuda::run_swiglu});
    table.add("swiglu_grad", dtype, DeviceKind::cuda, {.run = cuda::run_swiglu_grad});
  }
}

}  // namespace farskip
