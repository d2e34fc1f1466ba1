// SPDX-License-Identifier: Apache-2.0
// Rows into a cache, and the products of absorbed latent attention.
#include "backend/cuda/copy_rows.cuh"
#include "backend/cuda/product.h"
#include "ops/inference_ops.h"

namespace farskip {
namespace cuda {
namespace {

/// Rows of x to rows[t] of the cache, from a column of it on.
void write_rows(const KernelCall& call, const TensorView& x, std::int64_t column) {
  const std::int64_t width = x.shape.back();
  copy_rows(call, {.from = {.base = x.data, .stride = width},
                   .to = {.base = column_address(call.outputs[0], column),
                          .stride = call.out_shape(0).back(),
                          .index = call.in<std::int32_t>(1),
                          .limit = static_cast<std::int32_t>(call.out_shape(0)[0]),
                          .may_miss = true},
                   .rows = x.shape[0],
                   .width = width,
                   .element_bytes = dtype_size(x.dtype)});
}

// cache[C, W], rows[T], x[T, W1], [more[T, W - W1]] → cache
void run_write_cache(const KernelCall& call) {
  const TensorView &before = call.inputs[0], &cache = call.outputs[0];
  if (before.data != cache.data)
    FARSKIP_CUDA_CHECK(cudaMemcpyAsync(cache.data, before.data, before.num_bytes(), cudaMemcpyDeviceToDevice,
                                       call.gpu->stream));
  write_rows(call, call.inputs[2], 0);
  if (call.has(3)) write_rows(call, call.inputs[3], call.in_shape(2).back());
}

/// One product a head, with the rows [row, row + depth or columns) of those of w that are the head's.
Product head_product(const KernelCall& call, std::int64_t row) {
  const auto& a = call.get<ops::MlaKeyValue>();
  const TensorView &x = call.inputs[0], &w = call.inputs[1], &out = call.outputs[0];
  const std::int64_t latent = w.shape[1];
  return {.m = x.shape[0],
          .in = x.dtype,
          .out = x.dtype,
          .a = x.data,
          .lda = x.shape[1],
          .b = w.as<std::byte>() + row * latent * static_cast<std::int64_t>(dtype_size(w.dtype)),
          .ldb = latent,
          .c = out.data,
          .ldc = out.shape[1],
          .batches = a.heads,
          .stride_a = x.shape[1] / a.heads,
          .stride_b = (a.nope_dim + a.v_dim) * latent,
          .stride_c = out.shape[1] / a.heads};
}

// q[T, A*(nope+rope)], w[A*(nope+v), L] → [T, A*(L+rope)]
void run_absorb_query(const KernelCall& call) {
  const auto& a = call.get<ops::MlaKeyValue>();
  const std::int64_t latent = call.in_shape(1)[1];
  Product product = head_product(call, 0);
  product.n = latent;
  product.k = a.nope_dim;
  multiply(*call.gpu, product, call.workspace);
  copy_rows(call,
            {.from = {.base = column_address(call.inputs[0], a.nope_dim), .stride = a.nope_dim + a.rope_dim},
             .to = {.base = column_address(call.outputs[0], latent), .stride = latent + a.rope_dim},
             .rows = call.in_shape(0)[0] * a.heads,
             .width = a.rope_dim,
             .element_bytes = dtype_size(call.inputs[0].dtype)});
}

// x[T, A*L], w[A*(nope+v), L] → [T, A*v]
void run_expand_value(const KernelCall& call) {
  const auto& a = call.get<ops::MlaKeyValue>();
  Product product = head_product(call, a.nope_dim);
  product.transpose_b = true;
  product.n = a.v_dim;
  product.k = call.in_shape(1)[1];
  multiply(*call.gpu, product, call.workspace);
}

std::size_t product_workspace(const OpTypes&) {
  return kProductWorkspace;
}

}  // namespace
}  // namespace cuda

void register_cuda_cache(KernelTable& table);

void register_cuda_cache(KernelTable& table) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    table.add("write_cache", dtype, DeviceKind::cuda, {.run = cuda::run_write_cache});
    table.add("absorb_query", dtype, DeviceKind::cuda,
              {.run = cuda::run_absorb_query, .workspace = cuda::product_workspace});
    table.add("expand_value", dtype, DeviceKind::cuda,
              {.run = cuda::run_expand_value, .workspace = cuda::product_workspace});
  }
}

}  // namespace farskip
