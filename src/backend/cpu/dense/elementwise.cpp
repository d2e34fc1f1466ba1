// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "backend/cpu/dense/column_sums.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/reduce.h"
#include "backend/cpu/vector_math.h"
#include "farskip/backend/kernel.h"
#include "farskip/ops/ops.h"

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

void run_clamp(const KernelCall& call) {
  const auto limit = static_cast<float>(call.get<ops::Clamp>().limit);
  const float* x = call.in(0);
  float* out = call.out(0);
  const auto cut = [&](std::int64_t begin, std::int64_t end) {
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) {
      const float low = x[i] < -limit ? -limit : x[i];  // a NaN stays one
      out[i] = low > limit ? limit : low;
    }
  };
  cpu::parallel_ranges(call.out_shape(0).num_elements(), cpu::kElementsPerTile, cut);
}

// dy, x → dx (may be dy)
void run_clamp_grad(const KernelCall& call) {
  const auto limit = static_cast<float>(call.get<ops::Clamp>().limit);
  const float *dy = call.in(0), *x = call.in(1);
  float* dx = call.out(0);
  const auto differentiate = [&](std::int64_t begin, std::int64_t end) {
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) dx[i] = x[i] < -limit || x[i] > limit ? 0.0F : dy[i];
  };
  cpu::parallel_ranges(call.out_shape(0).num_elements(), cpu::kElementsPerTile, differentiate);
}

void run_ones(const KernelCall& call) {
  std::fill_n(call.out(0), call.out_shape(0).num_elements(), 1.0F);
}

/// row(t) for each of `rows` rows of so many elements.
template <class Row>
void for_each_row(std::int64_t rows, std::int64_t width, const Row& row) {
  cpu::parallel_ranges(rows, cpu::rows_per_tile(width), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) row(t);
  });
}

// x[T, D], scale[T] → [T, D] (may be x)
void run_scale_rows(const KernelCall& call) {
  const float *x = call.in(0), *scale = call.in(1);
  float* out = call.out(0);
  const std::int64_t width = call.out_shape(0)[1];
  for_each_row(call.out_shape(0)[0], width, [&](std::int64_t t) {
#pragma omp simd
    for (std::int64_t i = t * width; i < (t + 1) * width; ++i) out[i] = x[i] * scale[t];
  });
}

// dy[T, D], x[T, D], scale[T] → dx[T, D] (may be dy), dscale[T]
void run_scale_rows_grad(const KernelCall& call) {
  const float *dy = call.in(0), *x = call.in(1), *scale = call.in(2);
  float *dx = call.out(0), *d_scale = call.out(1);
  const std::int64_t width = call.in_shape(0)[1];
  const auto differentiate = [&](std::int64_t t) {
    const float *gradient = dy + t * width, *values = x + t * width;
    float* out = dx + t * width;
    // One pass: dx may be dy, which the sum reads too.
    d_scale[t] = cpu::lane_sum<float>(width, [&](std::int64_t i) {
      const float d = gradient[i];
      out[i] = d * scale[t];
      return d * values[i];
    });
  };
  for_each_row(call.in_shape(0)[0], width, differentiate);
}

// x[T, N], b[N] → [T, N] (may be x)
void run_add_bias(const KernelCall& call) {
  const float *x = call.in(0), *bias = call.in(1);
  float* out = call.out(0);
  const std::int64_t width = call.out_shape(0)[1];
  for_each_row(call.out_shape(0)[0], width, [&](std::int64_t t) {
#pragma omp simd
    for (std::int64_t i = 0; i < width; ++i) out[t * width + i] = x[t * width + i] + bias[i];
  });
}

// dy[T, N], [accumulate db[N]] → db[N]
void run_add_bias_grad(const KernelCall& call) {
  cpu::sum_columns(call.in(0), call.in_shape(0)[0], call.in_shape(0)[1], call.has(1) ? call.in(1) : nullptr,
                   call.out(0));
}

// x, gate → x · sigmoid(gate) (may be x)
void run_sigmoid_gate(const KernelCall& call) {
  const float *x = call.in(0), *gate = call.in(1);
  float* out = call.out(0);
  const auto apply = [&](std::int64_t begin, std::int64_t end) {
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) out[i] = x[i] * cpu::fast_sigmoid(gate[i]);
  };
  cpu::parallel_ranges(call.out_shape(0).num_elements(), cpu::kElementsPerTile, apply);
}

// dy, x, gate → dx (may be dy), dgate (may be gate)
void run_sigmoid_gate_grad(const KernelCall& call) {
  const float *dy = call.in(0), *x = call.in(1), *gate = call.in(2);
  float *dx = call.out(0), *d_gate = call.out(1);
  const auto differentiate = [&](std::int64_t begin, std::int64_t end) {
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) {
      const float d = dy[i], s = cpu::fast_sigmoid(gate[i]);
      dx[i] = d * s;
      d_gate[i] = d * x[i] * (s * (1.0F - s));
    }
  };
  cpu::parallel_ranges(call.out_shape(0).num_elements(), cpu::kElementsPerTile, differentiate);
}

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

void register_elementwise(KernelTable& table);
void register_elementwise(KernelTable& table) {
  const auto add = [&](const char* op, void (*run)(const KernelCall&)) {
    table.add(op, DType::f32, DeviceKind::cpu, {.run = run, .workspace = nullptr});
  };
  add("add", run_add);
  add("add_bias", run_add_bias);
  add("add_bias_grad", run_add_bias_grad);
  add("clamp", run_clamp);
  add("clamp_grad", run_clamp_grad);
  add("ones", run_ones);
  add("scale_rows", run_scale_rows);
  add("scale_rows_grad", run_scale_rows_grad);
  add("sigmoid_gate", run_sigmoid_gate);
  add("sigmoid_gate_grad", run_sigmoid_gate_grad);
  table.add("cast", DType::f32, DeviceKind::cpu, {.run = run_to_bf16, .workspace = nullptr});
  table.add("cast", DType::bf16, DeviceKind::cpu, {.run = run_to_f32, .workspace = nullptr});
}

}  // namespace farskip
