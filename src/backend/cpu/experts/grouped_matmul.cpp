// SPDX-License-Identifier: Apache-2.0
// Products of the experts: every expert's tiles go into one parallel loop.
#include <algorithm>
#include <span>

#include "backend/cpu/dense/matmul.h"
#include "backend/cpu/parallel.h"
#include "farskip/backend/kernel.h"
#include "farskip/ops/ops.h"

namespace farskip {
namespace {

/// first[e] = number of tiles of the experts before e, first[E] = all.
std::size_t first_tiles_bytes(std::int64_t experts) {
  return static_cast<std::size_t>(experts + 1) * sizeof(std::int64_t);
}

/// Runs the tiles of product_of(e), e in [0, experts), over all threads.
template <class F>
void run_products(std::int64_t experts, std::span<std::byte> workspace, const F& product_of) {
  FARSKIP_CHECK(workspace.size() >= first_tiles_bytes(experts), "workspace of {} bytes", workspace.size());
  auto* first = reinterpret_cast<std::int64_t*>(workspace.data());
  const cpu::Workers workers = cpu::available_workers(experts);
  const auto tiling_of = [&](const cpu::Product& p) { return cpu::choose_tiling(p, workers); };
  first[0] = 0;
  for (std::int64_t e = 0; e < experts; ++e) first[e + 1] = first[e] + tiling_of(product_of(e)).count();
  cpu::parallel_for(first[experts], [&](std::int64_t i) {
    const std::int64_t e = std::upper_bound(first, first + experts + 1, i) - first - 1;
    const cpu::Product product = product_of(e);
    cpu::run_tile(product, tiling_of(product), i - first[e]);
  });
}

void run_grouped_matmul(const KernelCall& call) {
  const bool transpose_w = call.get<ops::GroupedMatmul>().transpose_w;
  const Shape& w_shape = call.in_shape(1);
  const std::int64_t rows = w_shape[1], columns = w_shape[2];
  const std::int64_t k = transpose_w ? columns : rows, n = transpose_w ? rows : columns;
  const auto* offsets = call.in<std::int32_t>(2);
  run_products(w_shape[0], call.workspace, [&](std::int64_t e) {
    cpu::Product product;
    product.transpose_b = transpose_w;
    product.m = offsets[e + 1] - offsets[e];
    product.n = n;
    product.k = k;
    product.a = call.in(0) + offsets[e] * k;
    product.lda = k;
    product.b = call.in(1) + e * rows * columns;
    product.ldb = columns;
    product.c = call.out(0) + offsets[e] * n;
    product.ldc = n;
    return product;
  });
}

void run_grouped_matmul_wgrad(const KernelCall& call) {
  const std::int64_t n = call.in_shape(0).back(), k = call.in_shape(1).back();
  const auto* offsets = call.in<std::int32_t>(2);
  run_products(call.out_shape(0)[0], call.workspace, [&](std::int64_t e) {
    cpu::Product product;  // without rows it has depth 0: zeros, or the accumulated gradient as it was
    product.transpose_a = true;
    product.m = n;
    product.n = k;
    product.k = offsets[e + 1] - offsets[e];
    product.a = call.in(0) + offsets[e] * n;
    product.lda = n;
    product.b = call.in(1) + offsets[e] * k;
    product.ldb = k;
    product.c = call.out(0) + e * n * k;
    product.ldc = k;
    product.accumulate = call.has(3) ? call.in(3) + e * n * k : nullptr;
    return product;
  });
}

}  // namespace

void register_grouped_matmul(KernelTable& table);

void register_grouped_matmul(KernelTable& table) {
  // Input 2 is offsets[E + 1].
  const auto workspace = [](const OpTypes& types) { return first_tiles_bytes(types.shape(2)[0] - 1); };
  table.add("grouped_matmul", DType::f32, DeviceKind::cpu,
            {.run = run_grouped_matmul, .workspace = workspace});
  table.add("grouped_matmul_wgrad", DType::f32, DeviceKind::cpu,
            {.run = run_grouped_matmul_wgrad, .workspace = workspace});
}

}  // namespace farskip
