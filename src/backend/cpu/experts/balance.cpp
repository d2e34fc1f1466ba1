// SPDX-License-Identifier: Apache-2.0
// Load-balancing loss (DeepSeek-V2, arXiv 2405.04434, eq. 23-25), one term per sequence.
#include "backend/balance_sizes.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/reduce.h"
#include "farskip/backend/kernel.h"
#include "farskip/ops/ops.h"

namespace farskip {
namespace {

constexpr std::int64_t kTokensPerBlock = 128;

/// A sequence is computed in blocks of tokens.
struct Sizes : BalanceSizes {
  Sizes(const ops::BalanceLoss& a, const Shape& scores, const Shape& indices)
      : BalanceSizes(a, scores, indices), blocks((length + kTokensPerBlock - 1) / kTokensPerBlock) {}
  std::int64_t blocks;
};

float score_scale(const ops::BalanceLoss& a, const float* scores, std::int64_t num_experts) {
  if (!a.normalize_scores) return 1.0F;
  return 1.0F /
         (cpu::lane_sum<float>(num_experts, [&](std::int64_t e) { return scores[e]; }) + kTinyScoreSum);
}

std::size_t balance_loss_workspace(const OpTypes& types) {
  const Sizes s(types.get<ops::BalanceLoss>(), types.shape(0), types.shape(1));
  return static_cast<std::size_t>(s.sequences * s.blocks * s.num_experts * 2) * sizeof(double);
}

// scores[T, E], indices[T, K] → [1]
void run_balance_loss(const KernelCall& call) {
  const auto& a = call.get<ops::BalanceLoss>();
  const Sizes s(a, call.in_shape(0), call.in_shape(1));
  auto* partial = reinterpret_cast<double*>(call.workspace.data());  // [block][times chosen | Σ score][E]
  cpu::parallel_for(s.sequences * s.blocks, [&](std::int64_t tile) {
    double *chosen = partial + tile * 2 * s.num_experts, *sums = chosen + s.num_experts;
    std::fill(chosen, chosen + 2 * s.num_experts, 0.0);
    const std::int64_t first = tile % s.blocks * kTokensPerBlock, start = tile / s.blocks * s.length;
    for (std::int64_t t = start + first; t < start + std::min(s.length, first + kTokensPerBlock); ++t) {
      for (std::int64_t k = 0; k < s.top_k; ++k) chosen[call.in<std::int32_t>(1)[t * s.top_k + k]] += 1.0;
      const float* scores = call.in(0) + t * s.num_experts;
      const float scale = score_scale(a, scores, s.num_experts);
#pragma omp simd
      for (std::int64_t e = 0; e < s.num_experts; ++e) sums[e] += static_cast<double>(scores[e] * scale);
    }
  });
  double loss = 0.0;
  for (std::int64_t sequence = 0; sequence < s.sequences; ++sequence)
    for (std::int64_t e = 0; e < s.num_experts; ++e) {
      double chosen = 0.0, sum = 0.0;
      for (std::int64_t block = 0; block < s.blocks; ++block) {
        const double* tile = partial + (sequence * s.blocks + block) * 2 * s.num_experts;
        chosen += tile[e];
        sum += tile[s.num_experts + e];
      }
      loss += chosen * sum;
    }
  call.out(0)[0] = static_cast<float>(loss * s.loss_factor());
}

std::size_t balance_loss_grad_workspace(const OpTypes& types) {
  const Sizes s(types.get<ops::BalanceLoss>(), types.shape(1), types.shape(2));
  return static_cast<std::size_t>(s.sequences * s.num_experts) * sizeof(float);
}

// dloss[1], scores[T, E], indices[T, K] → dscores[T, E]. With p the (normalised) scores of a token,
// dloss/dp_e = g_e = dloss f_e / S; through p = s / Σs: ds_e = (g_e - Σ g p) / Σs.
void run_balance_loss_grad(const KernelCall& call) {
  const auto& a = call.get<ops::BalanceLoss>();
  const Sizes s(a, call.in_shape(1), call.in_shape(2));
  auto* gradients = reinterpret_cast<float*>(call.workspace.data());  // g[B, E]
  const auto factor = static_cast<float>(static_cast<double>(call.in(0)[0]) * s.loss_factor());
  cpu::parallel_for(s.sequences, [&](std::int64_t sequence) {
    float* g = gradients + sequence * s.num_experts;
    std::fill(g, g + s.num_experts, 0.0F);
    const auto* indices = call.in<std::int32_t>(2) + sequence * s.length * s.top_k;
    for (std::int64_t slot = 0; slot < s.length * s.top_k; ++slot) g[indices[slot]] += 1.0F;
    for (std::int64_t e = 0; e < s.num_experts; ++e) g[e] *= factor;
  });
  cpu::parallel_ranges(s.sequences * s.length, kTokensPerBlock, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      const float *g = gradients + t / s.length * s.num_experts, *scores = call.in(1) + t * s.num_experts;
      float* d = call.out(0) + t * s.num_experts;
      const float scale = score_scale(a, scores, s.num_experts);
      float dot = 0.0F;
      if (a.normalize_scores)
        dot = scale * cpu::lane_sum<float>(s.num_experts, [&](std::int64_t e) { return g[e] * scores[e]; });
#pragma omp simd
      for (std::int64_t e = 0; e < s.num_experts; ++e) d[e] = (g[e] - dot) * scale;
    }
  });
}

}  // namespace

void register_balance(KernelTable& table);
void register_balance(KernelTable& table) {
  table.add("balance_loss", DType::f32, DeviceKind::cpu,
            {.run = run_balance_loss, .workspace = balance_loss_workspace});
  table.add("balance_loss_grad", DType::f32, DeviceKind::cpu,
            {.run = run_balance_loss_grad, .workspace = balance_loss_grad_workspace});
}

}  // namespace farskip
