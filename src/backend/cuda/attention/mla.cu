// SPDX-License-Identifier: Apache-2.0
// Keys and values of multi-head latent attention, put together from the up-projected latent and the rotated
// part that all heads share.
#include "backend/cuda/copy_rows.cuh"
#include "farskip/ops/ops.h"

namespace farskip {
namespace cuda {
namespace {

/// Copies `width` elements of every head of every token: from the given column of a head to another.
struct HeadPart {
  const TensorView& matrix;
  std::int64_t head_width, column;

  RowPlace place() const { return {.base = column_address(matrix, column), .stride = head_width}; }
};
void copy_heads(const KernelCall& call, std::int64_t rows, std::int64_t width, const RowPlace& from,
                const RowPlace& to) {
  copy_rows(call, {.from = from,
                   .to = to,
                   .rows = rows,
                   .width = width,
                   .element_bytes = dtype_size(call.inputs[0].dtype)});
}

// kv[T, A*(nope+v)], k_rope[T, rope] → k[T, A*(nope+rope)], v[T, A*v]
void run_mla_key_value(const KernelCall& call) {
  const auto& a = call.get<ops::MlaKeyValue>();
  const std::int64_t heads = call.in_shape(0)[0] * a.heads;
  const std::int64_t from = a.nope_dim + a.v_dim, key = a.nope_dim + a.rope_dim;
  const TensorView &kv = call.inputs[0], &k = call.outputs[0], &v = call.outputs[1];
  copy_heads(call, heads, a.nope_dim, HeadPart{kv, from, 0}.place(), HeadPart{k, key, 0}.place());
  copy_heads(call, heads, a.v_dim, HeadPart{kv, from, a.nope_dim}.place(), HeadPart{v, a.v_dim, 0}.place());
  RowPlace shared = HeadPart{call.inputs[1], a.rope_dim, 0}.place();
  shared.divisor = static_cast<std::int32_t>(a.heads);
  copy_heads(call, heads, a.rope_dim, shared, HeadPart{k, key, a.nope_dim}.place());
}

/// dk_rope[t, r] = Σ over heads, in their order, of dk[t, head, nope + r].
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    sum_heads_kernel(const T* dk, T* dk_rope, std::int64_t tokens, int heads, int nope_dim, int rope_dim) {
  const std::int64_t item = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int items = rope_dim / N;
  const std::int64_t token = item / items;
  if (token >= tokens) return;
  const int r = static_cast<int>(item % items) * N, head_width = nope_dim + rope_dim;
  const T* from = dk + token * heads * head_width + nope_dim + r;
  float sum[N] = {};
#pragma unroll 4
  for (int head = 0; head < heads; ++head) {
    float x[N];
    load<N>(from + static_cast<std::int64_t>(head) * head_width, x);
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] += x[i];
  }
  store<N>(dk_rope + token * rope_dim + r, sum);
}

// dk, dv → dkv, dk_rope
void run_mla_key_value_grad(const KernelCall& call) {
  const auto& a = call.get<ops::MlaKeyValue>();
  const std::int64_t tokens = call.in_shape(0)[0], heads = tokens * a.heads;
  const std::int64_t to = a.nope_dim + a.v_dim, key = a.nope_dim + a.rope_dim;
  const TensorView &dk = call.inputs[0], &dv = call.inputs[1], &dkv = call.outputs[0];
  copy_heads(call, heads, a.nope_dim, HeadPart{dk, key, 0}.place(), HeadPart{dkv, to, 0}.place());
  copy_heads(call, heads, a.v_dim, HeadPart{dv, a.v_dim, 0}.place(), HeadPart{dkv, to, a.nope_dim}.place());
  with_element_type(dk.dtype, [&](auto element) {
    using T = decltype(element);
    if (tokens == 0 || a.rope_dim == 0) return;
    const bool wide = a.nope_dim % 8 == 0 && a.rope_dim % 8 == 0 && is_aligned(dk.data, call.outputs[1].data);
    const std::int64_t items = tokens * (wide ? a.rope_dim / 8 : a.rope_dim);
    launch(call, wide ? sum_heads_kernel<T, 8> : sum_heads_kernel<T, 1>, grid_size(ceil_div(items, kThreads)),
           kThreads, 0, call.in<T>(0), call.out<T>(1), tokens, a.heads, a.nope_dim, a.rope_dim);
  });
}

}  // namespace
}  // namespace cuda

void register_cuda_mla(KernelTable& table);
void register_cuda_mla(KernelTable& table) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    table.add("mla_key_value", dtype, DeviceKind::cuda, {.run = cuda::run_mla_key_value});
    table.add("mla_key_value_grad", dtype, DeviceKind::cuda, {.run = cuda::run_mla_key_value_grad});
  }
}

}  // namespace farskip
