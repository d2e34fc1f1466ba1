// SPDX-License-Identifier: Apache-2.0
// Conversions, sums, bounds and gates, element by element; factors row by row, and biases.
#include <type_traits>

#include "backend/cuda/dense/column_sums.cuh"
#include "backend/cuda/launch.cuh"
#include "farskip/ops/ops.h"

namespace farskip {
namespace cuda {
namespace {

constexpr int kVectors = 2;  // per thread and operand, all loaded before the first is stored

struct Copy {
  __device__ float operator()(float x, float) const { return x; }
};
struct Sum {
  __device__ float operator()(float x, float y) const { return x + y; }
};
struct Cut {
  float limit;
  __device__ float operator()(float x, float) const {
    const float low = x < -limit ? -limit : x;  // a NaN stays one
    return low > limit ? limit : low;
  }
};
struct CutGradient {
  float limit;
  __device__ float operator()(float dy, float x) const { return x < -limit || x > limit ? 0.0F : dy; }
};
struct Gate {
  __device__ float operator()(float x, float gate) const { return x * sigmoid(gate); }
};

/// out[i] = op(x[i], y[i]); y may be nullptr. Vectors of N; what does not fill one is done singly by the last
/// threads.
template <class Op, int N, class In, class Out>
__global__ void __launch_bounds__(kThreads)
    elementwise_kernel(Op op, const In* x, const In* y, Out* out, std::int64_t n, std::int64_t row,
                       const std::int32_t* count) {
  if (count != nullptr) n = min(n, row * *count);
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * kVectors * kThreads + threadIdx.x) * N;
  Pack<In, N> a[kVectors], b[kVectors];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const std::int64_t at = first + static_cast<std::int64_t>(v) * kThreads * N;
    if (at + N > n) continue;
    a[v] = Pack<In, N>::load(x + at);
    if (y != nullptr) b[v] = Pack<In, N>::load(y + at);
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const std::int64_t at = first + static_cast<std::int64_t>(v) * kThreads * N;
    if (at + N <= n) {
      float p[N], q[N] = {};
      a[v].unpack(p);
      if (y != nullptr) b[v].unpack(q);
#pragma unroll
      for (int i = 0; i < N; ++i) p[i] = op(p[i], q[i]);
      store<N>(out + at, p);
    } else {
      for (std::int64_t i = at; i < n; ++i)
        store_one(out + i, op(to_float(x[i]), y != nullptr ? to_float(y[i]) : 0.0F));
    }
  }
}

template <class Op, class In, class Out>
void run_elementwise(const KernelCall& call, const Op& op, const In* x, const In* y) {
  Out* out = call.out<Out>(0);
  const Shape& shape = call.out_shape(0);
  const std::int64_t n = shape.num_elements();
  if (n == 0) return;
  const std::int64_t row = shape.rank() == 0 ? 1 : n / shape[0];
  const bool wide = is_aligned(x, y, out);
  const auto kernel = wide ? elementwise_kernel<Op, 8, In, Out> : elementwise_kernel<Op, 1, In, Out>;
  launch(call, kernel, grid_size(ceil_div(n, std::int64_t{kThreads} * kVectors * (wide ? 8 : 1))), kThreads,
         0, op, x, y, out, n, row, input_count(call, 0));
}

void run_cast(const KernelCall& call) {
  with_element_type(call.inputs[0].dtype, [&](auto element) {
    using From = decltype(element);
    using To = std::conditional_t<std::is_same_v<From, float>, bf16, float>;
    run_elementwise<Copy, From, To>(call, {}, call.in<From>(0), nullptr);
  });
}

/// Of one input or two of a type, and an output of that type.
template <class Op>
void run_same_type(const KernelCall& call, const Op& op) {
  with_element_type(call.inputs[0].dtype, [&](auto element) {
    using T = decltype(element);
    run_elementwise<Op, T, T>(call, op, call.in<T>(0), call.has(1) ? call.in<T>(1) : nullptr);
  });
}

void run_add(const KernelCall& call) {
  run_same_type(call, Sum{});
}
void run_clamp(const KernelCall& call) {
  run_same_type(call, Cut{static_cast<float>(call.get<ops::Clamp>().limit)});
}
// dy, x → dx (may be dy)
void run_clamp_grad(const KernelCall& call) {
  run_same_type(call, CutGradient{static_cast<float>(call.get<ops::Clamp>().limit)});
}
// x, gate → x · sigmoid(gate) (may be x)
void run_sigmoid_gate(const KernelCall& call) {
  run_same_type(call, Gate{});
}

/// dx may be dy, and dgate may be gate: a thread has read what it overwrites.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    sigmoid_gate_grad_kernel(const T* dy, const T* x, const T* gate, T* dx, T* d_gate, std::int64_t n) {
  const std::int64_t at = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * N;
  if (at >= n) return;
  float d[N], value[N], g[N];
  load<N>(dy + at, d);
  load<N>(x + at, value);
  load<N>(gate + at, g);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float s = sigmoid(g[i]);
    g[i] = d[i] * value[i] * (s * (1.0F - s));
    d[i] *= s;
  }
  store<N>(dx + at, d);
  store<N>(d_gate + at, g);
}

// dy, x, gate → dx, dgate
void run_sigmoid_gate_grad(const KernelCall& call) {
  with_element_type(call.inputs[0].dtype, [&](auto element) {
    using T = decltype(element);
    const std::int64_t n = call.out_shape(0).num_elements();
    const bool wide =
        n % 8 == 0 && is_aligned(call.in<T>(0), call.in<T>(1), call.in<T>(2), call.out<T>(0), call.out<T>(1));
    launch(call, wide ? sigmoid_gate_grad_kernel<T, 8> : sigmoid_gate_grad_kernel<T, 1>,
           grid_size(ceil_div(n, std::int64_t{kThreads} * (wide ? 8 : 1))), kThreads, 0, call.in<T>(0),
           call.in<T>(1), call.in<T>(2), call.out<T>(0), call.out<T>(1), n);
  });
}

__global__ void __launch_bounds__(kThreads) ones_kernel(float* out, std::int64_t n) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) out[i] = 1.0F;
}

void run_ones(const KernelCall& call) {
  const std::int64_t n = call.out_shape(0).num_elements();
  launch(call, ones_kernel, grid_size(ceil_div(n, kThreads)), kThreads, 0, call.out(0), n);
}

/// One warp a row, for the rows of x and for their gradient (`x` and `d_scale` there, else nullptr). What is
/// scaled may lie where it is written.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    scale_rows_kernel(const T* scaled, const T* x, const float* scale, T* out, float* d_scale,
                      std::int64_t rows, std::int64_t width, const std::int32_t* count) {
  const std::int64_t row = warp_row();
  if (row >= actual_rows(rows, count)) return;
  const float factor = scale[row];
  float sum = 0.0F;
  for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x % 32) * N; i < width; i += 32 * N) {
    float values[N], others[N];
    load<N>(scaled + row * width + i, values);
    if (x != nullptr) {
      load<N>(x + row * width + i, others);
#pragma unroll
      for (int j = 0; j < N; ++j) sum += values[j] * others[j];
    }
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] *= factor;
    store<N>(out + row * width + i, values);
  }
  if (d_scale == nullptr) return;
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) d_scale[row] = sum;
}

template <class T>
void launch_scale_rows(const KernelCall& call, const T* x, const float* scale, float* d_scale) {
  const std::int64_t rows = call.out_shape(0)[0], width = call.out_shape(0)[1];
  const bool wide = width % 8 == 0 && is_aligned(call.in<T>(0), x, call.out<T>(0));
  launch(call, wide ? scale_rows_kernel<T, 8> : scale_rows_kernel<T, 1>, warp_row_grid(rows), kThreads, 0,
         call.in<T>(0), x, scale, call.out<T>(0), d_scale, rows, width, input_count(call, 0));
}

// x[T, D], scale[T] → [T, D] (may be x)
void run_scale_rows(const KernelCall& call) {
  with_element_type(call.inputs[0].dtype, [&](auto element) {
    launch_scale_rows<decltype(element)>(call, nullptr, call.in(1), nullptr);
  });
}

// dy[T, D], x[T, D], scale[T] → dx[T, D] (may be dy), dscale[T]
void run_scale_rows_grad(const KernelCall& call) {
  with_element_type(call.inputs[0].dtype, [&](auto element) {
    using T = decltype(element);
    launch_scale_rows<T>(call, call.in<T>(1), call.in(2), call.out(1));
  });
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    add_bias_kernel(const T* x, const float* bias, T* out, std::int64_t n, std::int64_t width) {
  const std::int64_t at = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * N;
  if (at >= n) return;
  float values[N], added[N];
  load<N>(x + at, values);
  load<N>(bias + at % width, added);
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] += added[i];
  store<N>(out + at, values);
}

// x[T, N], b[N] → [T, N] (may be x)
void run_add_bias(const KernelCall& call) {
  with_element_type(call.inputs[0].dtype, [&](auto element) {
    using T = decltype(element);
    const std::int64_t n = call.out_shape(0).num_elements(), width = call.out_shape(0)[1];
    const bool wide = width % 8 == 0 && is_aligned(call.in<T>(0), call.in(1), call.out<T>(0));
    launch(call, wide ? add_bias_kernel<T, 8> : add_bias_kernel<T, 1>,
           grid_size(ceil_div(n, std::int64_t{kThreads} * (wide ? 8 : 1))), kThreads, 0, call.in<T>(0),
           call.in(1), call.out<T>(0), n, width);
  });
}

// dy[T, N], [accumulate db[N]] → db[N]
void run_add_bias_grad(const KernelCall& call) {
  with_element_type(call.inputs[0].dtype, [&](auto element) {
    sum_columns(call, call.in<decltype(element)>(0), call.in_shape(0)[0], call.in_shape(0)[1],
                call.has(1) ? call.in(1) : nullptr, call.out(0));
  });
}

}  // namespace
}  // namespace cuda

void register_cuda_elementwise(KernelTable& table);
void register_cuda_elementwise(KernelTable& table) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    table.add("cast", dtype, DeviceKind::cuda, {.run = cuda::run_cast});
    table.add("add", dtype, DeviceKind::cuda, {.run = cuda::run_add});
    table.add("add_bias", dtype, DeviceKind::cuda, {.run = cuda::run_add_bias});
    table.add("add_bias_grad", dtype, DeviceKind::cuda, {.run = cuda::run_add_bias_grad});
    table.add("clamp", dtype, DeviceKind::cuda, {.run = cuda::run_clamp});
    table.add("clamp_grad", dtype, DeviceKind::cuda, {.run = cuda::run_clamp_grad});
    table.add("scale_rows", dtype, DeviceKind::cuda, {.run = cuda::run_scale_rows});
    table.add("scale_rows_grad", dtype, DeviceKind::cuda, {.run = cuda::run_scale_rows_grad});
    table.add("sigmoid_gate", dtype, DeviceKind::cuda, {.run = cuda::run_sigmoid_gate});
    table.add("sigmoid_gate_grad", dtype, DeviceKind::cuda, {.run = cuda::run_sigmoid_gate_grad});
  }
  table.add("ones", DType::f32, DeviceKind::cuda, {.run = cuda::run_ones});
}

}  // namespace farskip
