// SPDX-License-Identifier: Apache-2.0
// Routed rows to the ranks of their experts and back.
#include <algorithm>
#include <cstring>

#include "backend/cpu/parallel.h"
#include "backend/cpu/reduce.h"
#include "farskip/backend/kernel.h"
#include "farskip/comm/mesh.h"
#include "ops/collective_ops.h"

namespace farskip {
namespace {

// rows[R, H], offsets[E+1] → slabs, counts, overflow
Pending start_exchange_rows(const KernelCall& call, const Mesh& mesh) {
  const auto& a = call.get<ops::RowExchange>();
  return mesh.expert().start_all_to_all(
      RowExchange{.send = call.in(0),
                  .send_offsets = call.in<std::int32_t>(1),
                  .receive = call.out(0),
                  .receive_counts = call.out<std::int32_t>(1),
                  .overflow = call.out<std::int32_t>(2),
                  .row_bytes = row_size(call.in_shape(0)) * static_cast<std::int64_t>(sizeof(float)),
                  .max_rows_per_peer = a.max_rows,
                  .groups = static_cast<int>(a.groups)});
}

// slabs, counts, offsets → rows[R, H]
Pending start_return_rows(const KernelCall& call, const Mesh& mesh) {
  const auto& a = call.get<ops::RowExchange>();
  return mesh.expert().start_all_to_all(
      RowReturn{.send = call.in(0),
                .send_counts = call.in<std::int32_t>(1),
                .receive = call.out(0),
                .receive_offsets = call.in<std::int32_t>(2),
                .row_bytes = row_size(call.in_shape(0)) * static_cast<std::int64_t>(sizeof(float)),
                .max_rows_per_peer = a.max_rows,
                .groups = static_cast<int>(a.groups)});
}

// counts[P*G] → source[P*max_rows], offsets[G+1], num_rows[1]
void run_order_by_expert(const KernelCall& call) {
  const auto& a = call.get<ops::RowExchange>();
  const auto* counts = call.in<std::int32_t>(0);
  auto *source = call.out<std::int32_t>(0), *offsets = call.out<std::int32_t>(1);
  std::vector<std::int64_t> next(static_cast<std::size_t>(a.peers));  // unread row of each slab
  for (std::int64_t p = 0; p < a.peers; ++p) next[static_cast<std::size_t>(p)] = p * a.max_rows;
  std::int32_t row = 0;
  for (std::int64_t g = 0; g < a.groups; ++g) {
    offsets[g] = row;
    for (std::int64_t p = 0; p < a.peers; ++p)
      for (std::int32_t i = 0; i < counts[p * a.groups + g]; ++i)
        source[row++] = static_cast<std::int32_t>(next[static_cast<std::size_t>(p)]++);
  }
  offsets[a.groups] = row;
  call.out<std::int32_t>(2)[0] = row;
}

// x[N, H], source[M] → [M, H]
void run_gather_rows(const KernelCall& call) {
  const std::int64_t rows = call.in_shape(1)[0], size = row_size(call.in_shape(0));
  const float* x = call.in(0);
  const auto* source = call.in<std::int32_t>(1);
  float* out = call.out(0);
  cpu::parallel_ranges(rows, cpu::rows_per_tile(size), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r)
      std::memcpy(out + r * size, x + source[r] * size, static_cast<std::size_t>(size) * sizeof(float));
  });
}

// y[M, H], source[M] → [N, H]
void run_scatter_rows(const KernelCall& call) {
  const std::int64_t rows = call.in_shape(1)[0], size = row_size(call.in_shape(0));
  const float* y = call.in(0);
  const auto* source = call.in<std::int32_t>(1);
  float* out = call.out(0);
  cpu::parallel_ranges(rows, cpu::rows_per_tile(size), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r)
      std::memcpy(out + source[r] * size, y + r * size, static_cast<std::size_t>(size) * sizeof(float));
  });
}

}  // namespace

void register_routed_rows(KernelTable& table);
void register_routed_rows(KernelTable& table) {
  const auto cpu = DeviceKind::cpu;
  table.add("exchange_rows", DType::f32, cpu, {.start = start_exchange_rows});
  table.add("return_rows", DType::f32, cpu, {.start = start_return_rows});
  table.add("order_by_expert", DType::i32, cpu, {.run = run_order_by_expert});
  table.add("gather_rows", DType::f32, cpu, {.run = run_gather_rows});
  table.add("scatter_rows", DType::f32, cpu, {.run = run_scatter_rows});
}

}  // namespace farskip
