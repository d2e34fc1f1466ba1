// SPDX-License-Identifier: Apache-2.0
// Which experts a token goes to, with what weight, and the load-balancing loss.
#include <cmath>
#include <limits>

#include "backend/balance_sizes.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/reduce.h"
#include "backend/cpu/vector_math.h"
#include "farskip/backend/kernel.h"
#include "farskip/ops/ops.h"

namespace farskip {
namespace {

constexpr std::int64_t kTokensPerTile = 32;
constexpr float kExcluded = -std::numeric_limits<float>::infinity();

std::int64_t num_tiles(std::int64_t tokens) {
  return (tokens + kTokensPerTile - 1) / kTokensPerTile;
}

void compute_scores(const float* logits, std::int64_t num_experts, ops::ScoreFunction function,
                    float* scores) {
  if (function == ops::ScoreFunction::sigmoid) {
#pragma omp simd
    for (std::int64_t e = 0; e < num_experts; ++e) scores[e] = cpu::fast_sigmoid(logits[e]);
    return;
  }
  float largest = logits[0];
  for (std::int64_t e = 1; e < num_experts; ++e) largest = std::max(largest, logits[e]);
#pragma omp simd
  for (std::int64_t e = 0; e < num_experts; ++e) scores[e] = cpu::fast_exp(logits[e] - largest);
  const float sum = cpu::lane_sum<float>(num_experts, [&](std::int64_t e) { return scores[e]; });
#pragma omp simd
  for (std::int64_t e = 0; e < num_experts; ++e) scores[e] /= sum;
}

/// Index of the largest value (the first of equal ones), which is then excluded from later calls.
std::int64_t take_best(float* values, std::int64_t n) {
  std::int64_t best = 0;
  for (std::int64_t i = 1; i < n; ++i)
    if (values[i] > values[best]) best = i;
  values[best] = kExcluded;
  return best;
}

float group_score(const float* choice, std::int64_t size, ops::GroupScore kind) {
  float first = kExcluded, second = kExcluded;
  for (std::int64_t e = 0; e < size; ++e) {
    second = std::max(second, std::min(first, choice[e]));
    first = std::max(first, choice[e]);
  }
  return kind == ops::GroupScore::top2_sum && size > 1 ? first + second : first;
}

/// Excludes the experts outside the best groups. `groups` is scratch for one score per group.
void keep_best_groups(float* choice, std::int64_t num_experts, const ops::Route& a, float* groups) {
  const std::int64_t size = num_experts / a.num_groups;
  // Never -inf, the mark of a taken group: the sum of two lowest finite scores would be.
  constexpr float lowest = std::numeric_limits<float>::lowest();
  for (std::int64_t g = 0; g < a.num_groups; ++g)
    groups[g] = std::max(group_score(choice + g * size, size, a.group_score), lowest);
  for (std::int64_t kept = 0; kept < a.top_groups; ++kept) take_best(groups, a.num_groups);
  for (std::int64_t g = 0; g < a.num_groups; ++g)
    if (groups[g] != kExcluded) std::fill(choice + g * size, choice + (g + 1) * size, kExcluded);
}

struct RouteScratch {
  float *choice, *groups;  // [E], [num_groups]
};

void route_token(const KernelCall& call, std::int64_t t, const RouteScratch& scratch) {
  const auto& a = call.get<ops::Route>();
  const std::int64_t num_experts = call.in_shape(0)[1];
  float* scores = call.out(2) + t * num_experts;
  compute_scores(call.in(0) + t * num_experts, num_experts, a.score, scores);

  // Scores of a step that went wrong may be NaN: they rank last, so that indices stay valid and distinct.
  constexpr float lowest = std::numeric_limits<float>::lowest();
  const float* bias = call.has(1) ? call.in(1) : nullptr;
  const float* chosen_by = a.by_logits ? call.in(0) + t * num_experts : scores;
  for (std::int64_t e = 0; e < num_experts; ++e) {
    const float value = bias != nullptr ? chosen_by[e] + bias[e] : chosen_by[e];
    scratch.choice[e] = value > lowest ? value : lowest;
  }
  if (a.top_groups < a.num_groups) keep_best_groups(scratch.choice, num_experts, a, scratch.groups);

  auto* indices = call.out<std::int32_t>(0) + t * a.top_k;
  float* weights = call.out(1) + t * a.top_k;
  float sum = 0.0F;
  for (std::int64_t k = 0; k < a.top_k; ++k) {
    const std::int64_t expert = take_best(scratch.choice, num_experts);
    indices[k] = static_cast<std::int32_t>(expert);
    weights[k] = scores[expert];
    sum += scores[expert];
  }
  const auto scaling = static_cast<float>(a.scaling);
  for (std::int64_t k = 0; k < a.top_k; ++k)
    weights[k] = scaling * (a.normalize ? weights[k] / (sum + kTinyScoreSum) : weights[k]);
}

std::size_t route_workspace(const OpTypes& types) {
  const std::int64_t row = types.shape(0)[1] + types.get<ops::Route>().num_groups;
  return static_cast<std::size_t>(num_tiles(types.shape(0)[0]) * row) * sizeof(float);
}

// logits[T, E], [bias[E]] → indices[T, K], weights[T, K], scores[T, E]
void run_route(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(0)[0], num_experts = call.in_shape(0)[1];
  const std::int64_t row = num_experts + call.get<ops::Route>().num_groups;
  auto* scratch = reinterpret_cast<float*>(call.workspace.data());
  cpu::parallel_for(num_tiles(tokens), [&](std::int64_t tile) {
    float* choice = scratch + tile * row;
    const std::int64_t end = std::min(tokens, (tile + 1) * kTokensPerTile);
    for (std::int64_t t = tile * kTokensPerTile; t < end; ++t)
      route_token(call, t, {.choice = choice, .groups = choice + num_experts});
  });
}

/// Adds to d_scores[E] what the gradient of the K weights says about the scores they were made of.
void add_weight_gradient(const ops::Route& a, const float* d_weights, const float* scores,
                         const std::int32_t* indices, float* d_scores) {
  const auto scaling = static_cast<float>(a.scaling);
  float sum = 0.0F, dot = 0.0F;
  for (std::int64_t k = 0; k < a.top_k; ++k) {
    sum += scores[indices[k]];
    dot += d_weights[k] * scores[indices[k]];
  }
  // w_k = scaling s_k / n with n = Σ s + tiny: dw_k/ds_j = scaling / n (δ_kj - s_k / n).
  const float norm = sum + kTinyScoreSum;
  for (std::int64_t k = 0; k < a.top_k; ++k)
    d_scores[indices[k]] +=
        a.normalize ? scaling / norm * (d_weights[k] - dot / norm) : scaling * d_weights[k];
}

// [d_weights[T, K]], [d_scores[T, E]], scores[T, E], indices[T, K] → dlogits[T, E] (may be d_scores)
void run_route_grad(const KernelCall& call) {
  const auto& a = call.get<ops::Route>();
  const std::int64_t tokens = call.in_shape(2)[0], num_experts = call.in_shape(2)[1];
  const auto differentiate = [&](std::int64_t t) {
    const float* scores = call.in(2) + t * num_experts;
    float* d = call.out(0) + t * num_experts;
    for (std::int64_t e = 0; e < num_experts; ++e)
      d[e] = call.has(1) ? call.in(1)[t * num_experts + e] : 0.0F;
    if (call.has(0))
      add_weight_gradient(a, call.in(0) + t * a.top_k, scores, call.in<std::int32_t>(3) + t * a.top_k, d);
    if (a.score == ops::ScoreFunction::sigmoid) {
      for (std::int64_t e = 0; e < num_experts; ++e) d[e] *= scores[e] * (1.0F - scores[e]);
      return;
    }
    const float dot = cpu::lane_sum<float>(num_experts, [&](std::int64_t e) { return d[e] * scores[e]; });
    for (std::int64_t e = 0; e < num_experts; ++e) d[e] = scores[e] * (d[e] - dot);
  };
  cpu::parallel_ranges(tokens, kTokensPerTile, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) differentiate(t);
  });
}

}  // namespace

void register_router(KernelTable& table);
void register_router(KernelTable& table) {
  table.add("route", DType::f32, DeviceKind::cpu, {.run = run_route, .workspace = route_workspace});
  table.add("route_grad", DType::f32, DeviceKind::cpu, {.run = run_route_grad, .workspace = nullptr});
}

}  // namespace farskip
