// SPDX-License-Identifier: Apache-2.0
// Routed rows in slabs, one for each peer. (On a CPU rows travel by exchange_rows, which needs no slabs.)
#include <algorithm>
#include <cstring>

#include "backend/cpu/parallel.h"
#include "backend/cpu/reduce.h"
#include "farskip/backend/kernel.h"
#include "ops/collective_ops.h"

namespace farskip {
namespace {

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

void register_slabs(KernelTable& table);
void register_slabs(KernelTable& table) {
  const auto cpu = DeviceKind::cpu;
  table.add("slab_places", DType::i32, cpu, {.run = run_slab_places});
  table.add("put_into_slabs", DType::f32, cpu, {.run = run_put_into_slabs});
  table.add("take_from_slabs", DType::f32, cpu, {.run = run_take_from_slabs});
}

}  // namespace farskip
