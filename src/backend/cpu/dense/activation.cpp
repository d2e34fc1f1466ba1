// SPDX-License-Identifier: Apache-2.0
// SwiGLU: silu(gate) · up, optionally times the routing weight of the row.
#include "backend/cpu/parallel.h"
#include "backend/cpu/reduce.h"
#include "backend/cpu/vector_math.h"
#include "farskip/backend/kernel.h"

namespace farskip {
namespace {

// x[T, 2I] (gate, up), [row_weight[T]] → [T, I]
void run_swiglu(const KernelCall& call) {
  const float *x = call.in(0), *weights = call.has(1) ? call.in(1) : nullptr;
  float* out = call.out(0);
  const std::int64_t width = call.out_shape(0)[1];
  const auto activate = [&](std::int64_t t) {
    const float *gate = x + t * 2 * width, *up = gate + width;
    float* y = out + t * width;
    const float weight = weights != nullptr ? weights[t] : 1.0F;
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) y[i] = cpu::silu(gate[i]) * up[i] * weight;
  };
  cpu::parallel_ranges(call.out_shape(0)[0], cpu::rows_per_tile(width),
                       [&](std::int64_t begin, std::int64_t end) {
                         for (std::int64_t t = begin; t < end; ++t) activate(t);
                       });
}

// dy[T, I], x[T, 2I], [row_weight[T]] → dx[T, 2I] (may be x), d_row_weight[T]
void run_swiglu_grad(const KernelCall& call) {
  const float *dy = call.in(0), *x = call.in(1), *weights = call.has(2) ? call.in(2) : nullptr;
  float* dx = call.out(0);
  const std::int64_t width = call.in_shape(0)[1];
  const auto differentiate = [&](std::int64_t t) {
    const float *gradient = dy + t * width, *gate = x + t * 2 * width, *up = gate + width;
    float *d_gate = dx + t * 2 * width, *d_up = d_gate + width;
    const float weight = weights != nullptr ? weights[t] : 1.0F;
    // One pass: the sum for the weight's gradient is taken where the element's gradients are written.
    const float sum = cpu::lane_sum<float>(width, [&](std::int64_t i) {
      const float g = gate[i], u = up[i], d = gradient[i] * weight;
      const float sigmoid = cpu::fast_sigmoid(g);
      d_gate[i] = d * u * (sigmoid * (1.0F + g * (1.0F - sigmoid)));
      d_up[i] = d * (g * sigmoid);
      return gradient[i] * (g * sigmoid * u);
    });
    if (weights != nullptr) call.out(1)[t] = sum;
  };
  cpu::parallel_ranges(call.in_shape(0)[0], cpu::rows_per_tile(width),
                       [&](std::int64_t begin, std::int64_t end) {
                         for (std::int64_t t = begin; t < end; ++t) differentiate(t);
                       });
}

}  // namespace

void register_activation(KernelTable& table);
void register_activation(KernelTable& table) {
  table.add("swiglu", DType::f32, DeviceKind::cpu, {.run = run_swiglu, .workspace = nullptr});
  table.add("swiglu_grad", DType::f32, DeviceKind::cpu, {.run = run_swiglu_grad, .workspace = nullptr});
}

}  // namespace farskip
