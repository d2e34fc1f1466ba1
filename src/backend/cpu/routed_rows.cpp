// SPDX-License-Identifier: Apache-2.0
// Routed rows to the ranks of their experts and back.
#include <algorithm>
#include <cstring>

#include "backend/cpu/parallel.h"
#include "backend/cpu/reduce.h"
#include "farskip/backend/kernel.h"
#include "farskip/ops/ops.h"

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

// slot_row[R], offsets[E+1] → places[R], counts[P*G], overflow[1]
void run_slab_places(const KernelCall& call) {
  const auto& a = call.get<ops::RowExchange>();
  const auto *slot_row = call.in<std::int32_t>(0), *offsets = call.in<std::int32_t>(1);
  auto *places = call.out<std::int32_t>(0), *counts = call.out<std::int32_t>(1);
  std::vector<std::int32_t> place_of_row(static_cast<std::size_t>(a.rows));
  std::int32_t overflow = 0;
  for (std::int64_t p = 0; p < a.peers; ++p) {
    const std::int32_t* const first = offsets + p * a.groups;
    for (std::int64_t g = 0; g < a.groups; ++g) {
      const auto fits = [&](std::int32_t row) { return std::min<std::int64_t>(row - first[0], a.max_rows); };
      counts[p * a.groups + g] = static_cast<std::int32_t>(fits(first[g + 1]) - fits(first[g]));
    }
    for (std::int64_t row = first[0]; row < first[a.groups]; ++row) {
      const std::int64_t in_slab = row - first[0];
      overflow |= in_slab >= a.max_rows ? 1 : 0;
      place_of_row[static_cast<std::size_t>(row)] =
          in_slab < a.max_rows ? static_cast<std::int32_t>(p * a.max_rows + in_slab) : -1;
    }
  }
  for (std::int64_t slot = 0; slot < a.rows; ++slot)
    places[slot] = place_of_row[static_cast<std::size_t>(slot_row[slot])];
  call.out<std::int32_t>(2)[0] = overflow;
}

// x[T, H] (or R values), places[R] → slabs
void run_put_into_slabs(const KernelCall& call) {
  const std::int64_t slots = call.in_shape(1)[0], size = row_size(call.out_shape(0));
  const std::int64_t top_k = std::max<std::int64_t>(call.get<ops::SlabRows>().top_k, 1);
  const float* x = call.in(0);
  const auto* places = call.in<std::int32_t>(1);
  float* out = call.out(0);
  cpu::parallel_ranges(slots, cpu::rows_per_tile(size), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t s = begin; s < end; ++s)
      if (places[s] >= 0)
        std::memcpy(out + places[s] * size, x + s / top_k * size,
                    static_cast<std::size_t>(size) * sizeof(float));
  });
}

// slabs, places[R] → [T, H] (or R values)
void run_take_from_slabs(const KernelCall& call) {
  const std::int64_t size = row_size(call.in_shape(0));
  const std::int64_t top_k = std::max<std::int64_t>(call.get<ops::SlabRows>().top_k, 1);
  const float* slabs = call.in(0);
  const auto* places = call.in<std::int32_t>(1);
  float* out = call.out(0);
  cpu::parallel_ranges(call.in_shape(1)[0] / top_k, cpu::rows_per_tile(size * top_k),
                       [&](std::int64_t begin, std::int64_t end) {
                         for (std::int64_t t = begin; t < end; ++t) {
                           float* const sum = out + t * size;
                           std::fill_n(sum, size, 0.0F);
                           for (std::int64_t k = t * top_k; k < (t + 1) * top_k; ++k)
                             for (std::int64_t h = 0; places[k] >= 0 && h < size; ++h)
                               sum[h] += slabs[places[k] * size + h];
                         }
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
  table.add("slab_places", DType::i32, cpu, {.run = run_slab_places});
  table.add("put_into_slabs", DType::f32, cpu, {.run = run_put_into_slabs});
  table.add("take_from_slabs", DType::f32, cpu, {.run = run_take_from_slabs});
}

}  // namespace farskip
