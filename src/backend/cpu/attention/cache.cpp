// SPDX-License-Identifier: Apache-2.0
// Rows into a cache, and the products of absorbed latent attention.
#include <algorithm>

#include "backend/cpu/dense/matmul.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/reduce.h"
#include "farskip/backend/kernel.h"
#include "ops/inference_ops.h"

namespace farskip {
namespace {

void run_write_cache(const KernelCall& call) {
  float* cache = call.out(0);
  const std::int64_t width = call.out_shape(0).back(), columns = call.in_shape(2).back();
  const auto* rows = call.in<std::int32_t>(1);
  if (call.in(0) != cache) std::copy_n(call.in(0), call.outputs[0].num_elements(), cache);
  cpu::parallel_ranges(
      call.in_shape(1)[0], cpu::rows_per_tile(width), [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t) {
          if (rows[t] < 0) continue;
          float* to = std::copy_n(call.in(2) + t * columns, columns, cache + rows[t] * width);
          if (call.has(3)) std::copy_n(call.in(3) + t * (width - columns), width - columns, to);
        }
      });
}

/// One product a head: `product_of(head)`.
template <class F>
void run_heads(std::int64_t heads, const F& product_of) {
  const cpu::Workers workers = cpu::available_workers(heads);
  const cpu::Tiling tiling = cpu::choose_tiling(product_of(0), workers);
  if (tiling.count() == 0) return;
  cpu::parallel_for(heads * tiling.count(), [&](std::int64_t i) {
    cpu::run_tile(product_of(i / tiling.count()), tiling, i % tiling.count());
  });
}

void run_absorb_query(const KernelCall& call) {
  const auto& a = call.get<ops::MlaKeyValue>();
  const std::int64_t tokens = call.in_shape(0)[0], latent = call.in_shape(1)[1];
  const std::int64_t in_width = call.in_shape(0)[1], out_width = call.out_shape(0)[1];
  const std::int64_t in_head = a.nope_dim + a.rope_dim, out_head = latent + a.rope_dim;
  run_heads(a.heads, [&](std::int64_t head) {
    cpu::Product product;
    product.m = tokens;
    product.n = latent;
    product.k = a.nope_dim;
    product.a = call.in(0) + head * in_head;
    product.lda = in_width;
    product.b = call.in(1) + head * (a.nope_dim + a.v_dim) * latent;
    product.ldb = latent;
    product.c = call.out(0) + head * out_head;
    product.ldc = out_width;
    return product;
  });
  for (std::int64_t i = 0; i < tokens * a.heads; ++i)
    std::copy_n(call.in(0) + i * in_head + a.nope_dim, a.rope_dim, call.out(0) + i * out_head + latent);
}

void run_expand_value(const KernelCall& call) {
  const auto& a = call.get<ops::MlaKeyValue>();
  const std::int64_t latent = call.in_shape(1)[1];
  run_heads(a.heads, [&](std::int64_t head) {
    cpu::Product product;
    product.transpose_b = true;
    product.m = call.in_shape(0)[0];
    product.n = a.v_dim;
    product.k = latent;
    product.a = call.in(0) + head * latent;
    product.lda = a.heads * latent;
    product.b = call.in(1) + (head * (a.nope_dim + a.v_dim) + a.nope_dim) * latent;
    product.ldb = latent;
    product.c = call.out(0) + head * a.v_dim;
    product.ldc = a.heads * a.v_dim;
    return product;
  });
}

}  // namespace

void register_cache(KernelTable& table);

void register_cache(KernelTable& table) {
  table.add("write_cache", DType::f32, DeviceKind::cpu, {.run = run_write_cache, .workspace = nullptr});
  table.add("absorb_query", DType::f32, DeviceKind::cpu, {.run = run_absorb_query, .workspace = nullptr});
  table.add("expand_value", DType::f32, DeviceKind::cpu, {.run = run_expand_value, .workspace = nullptr});
}

}  // namespace farskip
