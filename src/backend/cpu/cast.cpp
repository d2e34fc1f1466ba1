// SPDX-License-Identifier: Apache-2.0
#include "backend/cpu/parallel.h"
#include "backend/cpu/reduce.h"
#include "farskip/backend/kernel.h"

namespace farskip {
namespace {

void run_to_bf16(const KernelCall& call) {
  const float* x = call.in(0);
  auto* out = call.out<std::uint16_t>(0);
  cpu::parallel_ranges(call.out_shape(0).num_elements(), cpu::kElementsPerTile,
                       [&](std::int64_t begin, std::int64_t end) {
                         for (std::int64_t i = begin; i < end; ++i) out[i] = f32_to_bf16(x[i]);
                       });
}

void run_to_f32(const KernelCall& call) {
  const auto* x = call.in<std::uint16_t>(0);
  float* out = call.out(0);
  cpu::parallel_ranges(call.out_shape(0).num_elements(), cpu::kElementsPerTile,
                       [&](std::int64_t begin, std::int64_t end) {
                         for (std::int64_t i = begin; i < end; ++i) out[i] = bf16_to_f32(x[i]);
                       });
}

}  // namespace

void register_cast(KernelTable& table);
void register_cast(KernelTable& table) {
  table.add("cast", DType::f32, DeviceKind::cpu, {.run = run_to_bf16, .workspace = nullptr});
  table.add("cast", DType::bf16, DeviceKind::cpu, {.run = run_to_f32, .workspace = nullptr});
}

}  // namespace farskip
