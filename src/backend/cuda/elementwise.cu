// SPDX-License-Identifier: Apache-2.0
// Conversions and sums, element by element.
#include <type_traits>

#include "backend/cuda/launch.cuh"

namespace farskip {
namespace cuda {
namespace {

constexpr int kVectors = 2;  // per thread and operand, all loaded before the first is stored

struct Copy {
  __device__ static float apply(float x, float) { return x; }
};
struct Sum {
  __device__ static float apply(float x, float y) { return x + y; }
};

/// out[i] = Op(x[i], y[i]); y may be nullptr. Vectors of N; what does not fill one is done singly by the last
/// threads.
template <class Op, int N, class In, class Out>
__global__ void __launch_bounds__(kThreads)
    elementwise_kernel(const In* x, const In* y, Out* out, std::int64_t n, std::int64_t row,
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
      for (int i = 0; i < N; ++i) p[i] = Op::apply(p[i], q[i]);
      store<N>(out + at, p);
    } else {
      for (std::int64_t i = at; i < n; ++i)
        store_one(out + i, Op::apply(to_float(x[i]), y != nullptr ? to_float(y[i]) : 0.0F));
    }
  }
}

template <class Op, class In, class Out>
void run_elementwise(const KernelCall& call, const In* x, const In* y) {
  Out* out = call.out<Out>(0);
  const Shape& shape = call.out_shape(0);
  const std::int64_t n = shape.num_elements();
  if (n == 0) return;
  const std::int64_t row = shape.rank() == 0 ? 1 : n / shape[0];
  const bool wide = is_aligned(x, y, out);
  const auto kernel = wide ? elementwise_kernel<Op, 8, In, Out> : elementwise_kernel<Op, 1, In, Out>;
  launch(call, kernel, grid_size(ceil_div(n, std::int64_t{kThreads} * kVectors * (wide ? 8 : 1))), kThreads,
         0, x, y, out, n, row, input_count(call, 0));
}

void run_cast(const KernelCall& call) {
  with_element_type(call.inputs[0].dtype, [&](auto element) {
    using From = decltype(element);
    using To = std::conditional_t<std::is_same_v<From, float>, bf16, float>;
    run_elementwise<Copy, From, To>(call, call.in<From>(0), nullptr);
  });
}

void run_add(const KernelCall& call) {
  with_element_type(call.inputs[0].dtype, [&](auto element) {
    using T = decltype(element);
    run_elementwise<Sum, T, T>(call, call.in<T>(0), call.in<T>(1));
  });
}

}  // namespace
}  // namespace cuda

void register_cuda_elementwise(KernelTable& table);
void register_cuda_elementwise(KernelTable& table) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    table.add("cast", dtype, DeviceKind::cuda, {.run = cuda::run_cast});
    table.add("add", dtype, DeviceKind::cuda, {.run = cuda::run_add});
  }
}

}  // namespace farskip
