// SPDX-License-Identifier: Apache-2.0
#include "farskip/backend/cpu/parallel.h"
#include "farskip/backend/cpu/reduce.h"
#include "farskip/backend/kernel.h"

namespace farskip {
namespace {

void run_add(const KernelCall& call) {
  const float *x = call.in(0), *y = call.in(1);
  float* out = call.out(0);
  const auto add_range = [&](std::int64_t begin, std::int64_t end) {
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) out[i] = x[i] + y[i];
  };
  cpu::parallel_ranges(call.out_shape(0).num_elements(), cpu::kElementsPerTile, add_range);
}

}  // namespace

void register_elementwise(KernelTable& table);
void register_elementwise(KernelTable& table) {
  table.add("add", DType::f32, DeviceKind::cpu, {.run = run_add, .workspace = nullptr});
}

}  // namespace farskip
