// SPDX-License-Identifier: Apache-2.0
#include "backend/cpu/dense/matmul.h"

#include <algorithm>
#include <cstring>

#include "backend/cpu/few_rows.h"
#include "backend/cpu/micro_kernel.h"
#include "backend/cpu/parallel.h"
#include "farskip/backend/kernel.h"
#include "farskip/ops/ops.h"

namespace farskip {
namespace cpu {
namespace {

/// Columns of a tile of few rows.
constexpr std::int64_t kFewRowsColumns = 64;
/// Beyond this many rows the packed columns are used often enough.
constexpr std::int64_t kMaxTileRows = 1008;

bool has_few_rows(const Product& p) {
  return p.m <= kFewRows && !p.transpose_a && p.transpose_b;
}

}  // namespace

Workers available_workers(std::int64_t siblings) {
  return {omp_get_max_threads(), std::max<std::int64_t>(siblings, 1)};
}

Tiling choose_tiling(const Product& p, Workers workers) {
  const std::int64_t m = p.m, n = p.n, k = p.k;
  if (m <= 0 || n <= 0) return {};
  if (has_few_rows(p)) return {m, kFewRowsColumns, 1, ceil_div(n, kFewRowsColumns)};
  // Costs in multiply-adds, measured: packing an element of a or b, starting a tile.
  constexpr double kPackRow = 50, kPackColumn = 30, kStart = 1e5;
  constexpr std::int64_t kMostParts = 48;
  const auto part = [](std::int64_t size, std::int64_t parts, std::int64_t unit) {
    return round_up(ceil_div(size, parts), unit);
  };
  Tiling best;
  double best_cost = 0;
  for (std::int64_t down = ceil_div(m, kMaxTileRows); down <= ceil_div(m, kMaxTileRows) + kMostParts;
       ++down) {
    const std::int64_t rows = part(m, down, kMicroRows);
    for (std::int64_t across = ceil_div(n, kMaxTileColumns);
         across <= ceil_div(n, kMaxTileColumns) + kMostParts; ++across) {
      const std::int64_t columns = part(n, across, kMicroColumns);
      const Tiling tiling{rows, columns, ceil_div(m, rows), ceil_div(n, columns)};
      const auto r = static_cast<double>(rows), c = static_cast<double>(columns);
      const double tile = static_cast<double>(k) * (r * c + kPackRow * r + kPackColumn * c) + kStart;
      const double cost =
          static_cast<double>(ceil_div(workers.siblings * tiling.count(), workers.threads)) * tile;
      if (best.count() == 0 || cost < best_cost) {
        best = tiling;
        best_cost = cost;
      }
      if (columns <= 2 * kMicroColumns) break;
    }
    if (rows <= 2 * kMicroRows) break;
  }
  return best;
}

void run_tile(const Product& p, const Tiling& tiling, std::int64_t i) {
  // Down the rows first: neighbours in time share the columns of b, which is the larger operand (weights).
  const std::int64_t i0 = i % tiling.num_rows * tiling.rows, j0 = i / tiling.num_rows * tiling.columns;
  const std::int64_t m = std::min(tiling.rows, p.m - i0), n = std::min(tiling.columns, p.n - j0);
  const float* a = p.transpose_a ? p.a + i0 : p.a + i0 * p.lda;
  const float* b = p.transpose_b ? p.b + j0 * p.ldb : p.b + j0;
  float* c = p.c + i0 * p.ldc + j0;
  const bool accumulate = p.accumulate != nullptr;
  if (accumulate && p.accumulate != p.c) {
    const float* from = p.accumulate + i0 * p.ldc + j0;
    for (std::int64_t r = 0; r < m; ++r)
      std::memcpy(c + r * p.ldc, from + r * p.ldc, static_cast<std::size_t>(n) * sizeof(float));
  }
  if (has_few_rows(p))
    multiply_few_rows(m, n, p.k, a, p.lda, b, p.ldb, accumulate, c, p.ldc);
  else
    multiply_tile(p.transpose_a, p.transpose_b, m, n, p.k, a, p.lda, b, p.ldb, accumulate, c, p.ldc);
}

void multiply(const Product& product) {
  const Tiling tiling = choose_tiling(product, available_workers());
  parallel_for(tiling.count(), [&](std::int64_t i) { run_tile(product, tiling, i); });
}

}  // namespace cpu

namespace {

void run_matmul(const KernelCall& call) {
  const auto& attributes = call.get<ops::Matmul>();
  const std::int64_t a_columns = call.in_shape(0).back(), b_columns = call.in_shape(1).back();
  cpu::Product product;
  product.transpose_a = attributes.transpose_a;
  product.transpose_b = attributes.transpose_b;
  product.m = call.out_shape(0).num_rows();
  product.n = call.out_shape(0).back();
  product.k = attributes.transpose_a ? call.in_shape(0).num_rows() : a_columns;
  product.a = call.in(0);
  product.lda = a_columns;
  product.b = call.in(1);
  product.ldb = b_columns;
  product.c = call.out(0);
  product.ldc = product.n;
  product.accumulate = call.has(2) ? call.in(2) : nullptr;
  cpu::multiply(product);
}

}  // namespace

void register_matmul(KernelTable& table);

void register_matmul(KernelTable& table) {
  table.add("matmul", DType::f32, DeviceKind::cpu, {.run = run_matmul, .workspace = nullptr});
}

}  // namespace farskip
