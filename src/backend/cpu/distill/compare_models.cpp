// SPDX-License-Identifier: Apache-2.0
// Differences between a student and its teacher inside the layers: hidden states, routers.
#include <algorithm>

#include "backend/cpu/distill/distill_row.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/reduce.h"
#include "farskip/backend/kernel.h"
#include "ops/distill_ops.h"

namespace farskip {
namespace {

/// Σ over counted tokens of f(token), in order of tokens. `workspace` holds one double a token.
template <class F>
double sum_over_tokens(const KernelCall& call, std::int64_t tokens, const std::int32_t* targets, const F& f) {
  auto* values = reinterpret_cast<double*>(call.workspace.data());
  cpu::parallel_ranges(tokens, 64, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) values[t] = targets[t] < 0 ? 0.0 : f(t);
  });
  double sum = 0.0;
  for (std::int64_t t = 0; t < tokens; ++t) sum += values[t];
  return sum;
}

double weight_of(const float* token_weights, std::int64_t token) {
  return token_weights == nullptr ? 1.0 : static_cast<double>(token_weights[token]);
}

void run_squared_difference(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(0)[0], width = call.in_shape(0)[1];
  const double scale = call.get<ops::Weight>().weight / static_cast<double>(width);
  const float* token_weights = call.has(3) ? call.in(3) : nullptr;
  *call.out(0) =
      static_cast<float>(scale * sum_over_tokens(call, tokens, call.in<std::int32_t>(2), [&](std::int64_t t) {
                           const float *x = call.in(0) + t * width, *y = call.in(1) + t * width;
                           return weight_of(token_weights, t) *
                                  static_cast<double>(cpu::lane_sum<float>(
                                      width, [&](std::int64_t i) { return (x[i] - y[i]) * (x[i] - y[i]); }));
                         }));
}

void run_squared_difference_grad(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(1)[0], width = call.in_shape(1)[1];
  const auto* targets = call.in<std::int32_t>(3);
  const auto scale = static_cast<float>(2.0 * call.get<ops::Weight>().weight *
                                        static_cast<double>(*call.in(0)) / static_cast<double>(width));
  const float* token_weights = call.has(4) ? call.in(4) : nullptr;
  cpu::parallel_ranges(tokens, cpu::rows_per_tile(width), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float *x = call.in(1) + t * width, *y = call.in(2) + t * width;
      float* dx = call.out(0) + t * width;
      const float counted = targets[t] < 0 ? 0.0F : scale * static_cast<float>(weight_of(token_weights, t));
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i) dx[i] = counted * (x[i] - y[i]);
    }
  });
}

/// Of one value, that.
double mean_but_first(const double* values, std::int64_t count) {
  if (count == 1) return values[0];
  double sum = 0.0;
  for (std::int64_t i = 1; i < count; ++i) sum += values[i];
  return sum / static_cast<double>(count - 1);
}

void run_relative_weights(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(0)[0], width = call.in_shape(0)[1];
  const std::int64_t length = call.get<ops::Sequences>().sequence_length;
  const float* factors = call.has(1) ? call.in(1) : nullptr;
  auto* squares = reinterpret_cast<double*>(call.workspace.data());
  cpu::parallel_ranges(tokens, cpu::rows_per_tile(width), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float* y = call.in(0) + t * width;
      squares[t] =
          static_cast<double>(cpu::lane_sum<float>(width, [&](std::int64_t i) { return y[i] * y[i]; })) /
          static_cast<double>(width);
    }
  });
  for (std::int64_t first = 0; first < tokens; first += length) {
    const double mean = mean_but_first(squares + first, length);
    for (std::int64_t t = first; t < first + length; ++t)
      call.out(0)[t] =
          static_cast<float>(weight_of(factors, t) * 2.0 / std::max(squares[t] + mean, ops::kTinySquare));
  }
}

void run_router_divergence(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(0)[0];
  const auto experts = static_cast<std::size_t>(call.in_shape(0)[1]);
  *call.out(0) = static_cast<float>(
      call.get<ops::Weight>().weight *
      sum_over_tokens(call, tokens, call.in<std::int32_t>(2), [&](std::int64_t token) {
        const std::size_t first = static_cast<std::size_t>(token) * experts;
        return cpu::kl_divergence({call.in(0) + first, experts}, {call.in(1) + first, experts});
      }));
}

void run_router_divergence_grad(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(1)[0], experts = call.in_shape(1)[1];
  const auto* targets = call.in<std::int32_t>(3);
  const float scale = static_cast<float>(call.get<ops::Weight>().weight) * *call.in(0);
  cpu::parallel_ranges(tokens, cpu::rows_per_tile(experts), [&](std::int64_t begin, std::int64_t end) {
    const auto size = static_cast<std::size_t>(experts);
    for (std::int64_t token = begin; token < end; ++token) {
      const std::span<float> gradient{call.out(0) + token * experts, size};
      if (targets[token] < 0)
        std::fill(gradient.begin(), gradient.end(), 0.0F);
      else
        cpu::kl_gradient({call.in(1) + token * experts, size}, {call.in(2) + token * experts, size}, scale,
                         gradient);
    }
  });
}

void run_count_routing_flips(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(0)[0], top_k = call.in_shape(0)[1];
  const auto *student = call.in<std::int32_t>(0), *teacher = call.in<std::int32_t>(1);
  const auto* targets = call.in<std::int32_t>(2);
  std::int32_t flips = 0;
  for (std::int64_t t = 0; t < tokens; ++t) {
    if (targets[t] < 0) continue;
    const std::int32_t* chosen = teacher + t * top_k;
    for (std::int64_t k = 0; k < top_k; ++k)
      flips += std::find(chosen, chosen + top_k, student[t * top_k + k]) == chosen + top_k ? 1 : 0;
  }
  *call.out<std::int32_t>(0) = flips;
}

std::size_t double_per_token(const OpTypes& types) {
  return static_cast<std::size_t>(types.shape(0)[0]) * sizeof(double);
}

}  // namespace

void register_compare_models(KernelTable& table);

void register_compare_models(KernelTable& table) {
  table.add("squared_difference", DType::f32, DeviceKind::cpu,
            {.run = run_squared_difference, .workspace = double_per_token});
  table.add("squared_difference_grad", DType::f32, DeviceKind::cpu, {.run = run_squared_difference_grad});
  table.add("relative_weights", DType::f32, DeviceKind::cpu,
            {.run = run_relative_weights, .workspace = double_per_token});
  table.add("router_divergence", DType::f32, DeviceKind::cpu,
            {.run = run_router_divergence, .workspace = double_per_token});
  table.add("router_divergence_grad", DType::f32, DeviceKind::cpu, {.run = run_router_divergence_grad});
  table.add("count_routing_flips", DType::i32, DeviceKind::cpu, {.run = run_count_routing_flips});
}

}  // namespace farskip
