// SPDX-License-Identifier: Apache-2.0
// The order in which routed rows stand, and rows and values moved into and out of it.
#include <cstring>

#include "backend/cpu/parallel.h"
#include "backend/cpu/reduce.h"
#include "farskip/backend/kernel.h"
#include "farskip/ops/ops.h"

namespace farskip {
namespace {

constexpr std::int64_t kSlotsPerBlock = 4096;

std::int64_t num_blocks(std::int64_t slots) {
  return (slots + kSlotsPerBlock - 1) / kSlotsPerBlock;
}

std::size_t sort_workspace(const OpTypes& types) {
  const std::int64_t num_experts = types.get<ops::SortByExpert>().num_experts;
  return static_cast<std::size_t>(num_blocks(types.shape(0).num_elements()) * num_experts) *
         sizeof(std::int32_t);
}

// A stable counting sort: count per block of slots; turn the counts into the first row of each
// (expert, block); let each block put its slots there.
void run_sort_by_expert(const KernelCall& call) {
  const std::int64_t num_experts = call.get<ops::SortByExpert>().num_experts;
  const std::int64_t slots = call.in_shape(0).num_elements(), blocks = num_blocks(slots);
  const auto* indices = call.in<std::int32_t>(0);
  auto *row_slot = call.out<std::int32_t>(0), *slot_row = call.out<std::int32_t>(1);
  auto* offsets = call.out<std::int32_t>(2);
  auto* rows = reinterpret_cast<std::int32_t*>(call.workspace.data());  // [blocks, E]

  cpu::parallel_for(blocks, [&](std::int64_t block) {
    std::int32_t* counts = rows + block * num_experts;
    std::fill(counts, counts + num_experts, 0);
    for (std::int64_t slot = block * kSlotsPerBlock; slot < std::min(slots, (block + 1) * kSlotsPerBlock);
         ++slot) {
      FARSKIP_CHECK(indices[slot] >= 0 && indices[slot] < num_experts,
                    "expert {} of slot {} is outside [0, {})", indices[slot], slot, num_experts);
      ++counts[indices[slot]];
    }
  });
  std::int32_t row = 0;
  for (std::int64_t e = 0; e < num_experts; ++e) {
    offsets[e] = row;
    for (std::int64_t block = 0; block < blocks; ++block) {
      std::int32_t& first = rows[block * num_experts + e];
      const std::int32_t count = first;
      first = row;
      row += count;
    }
  }
  offsets[num_experts] = row;
  cpu::parallel_for(blocks, [&](std::int64_t block) {
    std::int32_t* next = rows + block * num_experts;
    for (std::int64_t slot = block * kSlotsPerBlock; slot < std::min(slots, (block + 1) * kSlotsPerBlock);
         ++slot) {
      const std::int32_t to = next[indices[slot]]++;
      row_slot[to] = static_cast<std::int32_t>(slot);
      slot_row[slot] = to;
    }
  });
}

// row_slot[R], slot_row[R], offsets[E+1] → those of some experts alone, and the number of their rows
void run_own_experts(const KernelCall& call) {
  const auto& a = call.get<ops::OwnExperts>();
  const auto *row_slot = call.in<std::int32_t>(0), *slot_row = call.in<std::int32_t>(1),
             *offsets = call.in<std::int32_t>(2);
  const std::int32_t first = offsets[a.first], end = offsets[a.first + a.count];
  std::copy(row_slot + first, row_slot + end, call.out<std::int32_t>(0));
  auto* own_row = call.out<std::int32_t>(1);
  const std::int64_t slots = call.in_shape(1)[0];
  for (std::int64_t s = 0; s < slots; ++s)
    own_row[s] = slot_row[s] >= first && slot_row[s] < end ? slot_row[s] - first : -1;
  for (std::int64_t e = 0; e <= a.count; ++e) call.out<std::int32_t>(2)[e] = offsets[a.first + e] - first;
  call.out<std::int32_t>(3)[0] = end - first;
}

// x[T, H], row_slot[R], slot_row[R] → [R, H]
void run_dispatch_rows(const KernelCall& call) {
  const auto top_k = static_cast<std::int32_t>(call.get<ops::TopK>().top_k);
  const float* x = call.in(0);
  const auto* row_slot = call.in<std::int32_t>(1);
  float* out = call.out(0);
  const std::int64_t rows = call.out_shape(0)[0], hidden = call.out_shape(0)[1];
  cpu::parallel_ranges(rows, cpu::rows_per_tile(hidden), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r)
      std::memcpy(out + r * hidden, x + row_slot[r] / top_k * hidden,
                  static_cast<std::size_t>(hidden) * sizeof(float));
  });
}

// y[R, H], row_slot[R], slot_row[R] (-1: nothing) → [T, H]
void run_combine_rows(const KernelCall& call) {
  const std::int64_t top_k = call.get<ops::TopK>().top_k;
  const float* y = call.in(0);
  const auto* slot_row = call.in<std::int32_t>(2);
  float* out = call.out(0);
  const std::int64_t tokens = call.out_shape(0)[0], hidden = call.out_shape(0)[1];
  const auto combine = [&](std::int64_t t) {
    const std::int32_t* rows = slot_row + t * top_k;
    float* sum = out + t * hidden;
    if (rows[0] >= 0)
      std::memcpy(sum, y + rows[0] * hidden, static_cast<std::size_t>(hidden) * sizeof(float));
    else
      std::fill(sum, sum + hidden, 0.0F);
    for (std::int64_t k = 1; k < top_k; ++k) {
      if (rows[k] < 0) continue;
      const float* row = y + rows[k] * hidden;
#pragma omp simd
      for (std::int64_t h = 0; h < hidden; ++h) sum[h] += row[h];
    }
  };
  cpu::parallel_ranges(tokens, cpu::rows_per_tile(hidden * top_k), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) combine(t);
  });
}

// values, index[R], inverse[R] → out[i] = values[index[i]]
void run_permute_values(const KernelCall& call) {
  const float* values = call.in(0);
  const auto* index = call.in<std::int32_t>(1);
  float* out = call.out(0);
  const auto permute = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) out[i] = index[i] < 0 ? 0.0F : values[index[i]];
  };
  cpu::parallel_ranges(call.out_shape(0).num_elements(), cpu::kElementsPerTile, permute);
}

}  // namespace

void register_dispatch(KernelTable& table);
void register_dispatch(KernelTable& table) {
  table.add("sort_by_expert", DType::i32, DeviceKind::cpu,
            {.run = run_sort_by_expert, .workspace = sort_workspace});
  table.add("own_experts", DType::i32, DeviceKind::cpu, {.run = run_own_experts, .workspace = nullptr});
  table.add("dispatch_rows", DType::f32, DeviceKind::cpu, {.run = run_dispatch_rows, .workspace = nullptr});
  table.add("combine_rows", DType::f32, DeviceKind::cpu, {.run = run_combine_rows, .workspace = nullptr});
  table.add("permute_values", DType::f32, DeviceKind::cpu, {.run = run_permute_values, .workspace = nullptr});
}

}  // namespace farskip
