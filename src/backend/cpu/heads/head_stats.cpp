// SPDX-License-Identifier: Apache-2.0
// Cross-entropy over a vocabulary that is cut over ranks: what a part says of each token, and the losses of
// all parts together.
#include "backend/cpu/heads/loss_rows.h"
#include "farskip/ops/ops.h"

namespace farskip {
namespace {

void run_head_stats(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(0)[0], rows = call.in_shape(1)[0];
  const auto& part = call.get<ops::VocabularyPart>();
  const Range own = part.own(rows);
  const auto* targets = call.in<std::int32_t>(2);
  cpu::check_targets(targets, tokens, part.size(rows));
  const cpu::RowStatistics statistics(call.workspace, tokens, rows);
  std::fill_n(call.out(0), tokens * ops::kNumHeadSums, 0.0F);
  std::fill_n(call.out(1), tokens * ops::kNumHeadFixed, 0.0F);
  cpu::for_each_total(call, own, statistics, [&](std::int64_t t, cpu::Partial total, float target_logit) {
    float *const sums = call.out(0) + t * ops::kNumHeadSums, *const fixed =
                                                                 call.out(1) + t * ops::kNumHeadFixed;
    const double lse = cpu::log_sum_exp(total);
    sums[0] = static_cast<float>(lse);
    sums[1] = targets[t] >= own.first && targets[t] < own.end() ? target_logit : 0.0F;
    fixed[0] = total.max;
    fixed[1] = static_cast<float>(lse - static_cast<double>(sums[0]));
  });
}

// dsums[T, 2], h, w, targets, [accumulate dw] → (dh, dw)
void run_head_stats_grad(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(1)[0], rows = call.in_shape(2)[0];
  const cpu::Head head{call.in(1), call.in(2), call.in_shape(1).back(), rows};
  const auto* targets = call.in<std::int32_t>(3);
  const auto& part = call.get<ops::VocabularyPart>();
  const Range own = part.own(rows);
  cpu::check_targets(targets, tokens, part.size(rows));
  cpu::run_blocks(head, tokens, reinterpret_cast<float*>(call.workspace.data()),
                  call.has(4) ? call.in(4) : nullptr, call.out(0), call.out(1),
                  [&](std::int64_t t, float* row) {
                    if (targets[t] < 0) return (void)std::fill_n(row, rows, 0.0F);
                    const float* const dsums = call.in(0) + t * ops::kNumHeadSums;
                    cpu::scale_softmax(row, own.count, dsums[0]);
                    std::fill(row + own.count, row + rows, 0.0F);
                    if (targets[t] >= own.first && targets[t] < own.end())
                      row[targets[t] - own.first] += dsums[1];
                  });
}

// ---- all parts together ----------------------------------------------------------------------------------

/// sums[P·T, 2], fixed[P·T, 2] and targets[T], from input `first` of a call on.
struct JointStats {
  const float *sums, *fixed;
  const std::int32_t* targets;
  std::int64_t tokens, parts, rows;

  JointStats(const KernelCall& call, std::size_t first)
      : sums(call.in(first)),
        fixed(call.in(first + 1)),
        targets(call.in<std::int32_t>(first + 2)),
        tokens(call.in_shape(first + 2)[0]),
        parts(tokens == 0 ? 0 : call.in_shape(first)[0] / tokens),
        rows(call.get<ops::JointParts>().rows) {
    cpu::check_targets(targets, tokens, parts * rows);
  }

  std::int64_t place(std::int64_t part, std::int64_t token) const {
    return (part * tokens + token) * ops::kNumHeadSums;
  }
  /// log Σ exp over one part.
  double lse_of(std::int64_t part, std::int64_t token) const {
    return static_cast<double>(sums[place(part, token)]) +
           static_cast<double>(fixed[(part * tokens + token) * ops::kNumHeadFixed + 1]);
  }
  /// log Σ exp over all parts.
  double lse(std::int64_t token) const {
    double top = -std::numeric_limits<double>::infinity(), sum = 0.0;
    for (std::int64_t p = 0; p < parts; ++p) top = std::max(top, lse_of(p, token));
    for (std::int64_t p = 0; p < parts; ++p) sum += std::exp(lse_of(p, token) - top);
    return top + std::log(sum);
  }
  float target_logit(std::int64_t token) const { return sums[place(targets[token] / rows, token) + 1]; }
  double loss(std::int64_t token) const {
    return targets[token] < 0 ? 0.0 : lse(token) - static_cast<double>(target_logit(token));
  }
  bool is_correct(std::int64_t token) const {
    bool correct = targets[token] >= 0;
    for (std::int64_t p = 0; correct && p < parts; ++p)
      correct = target_logit(token) >= fixed[(p * tokens + token) * ops::kNumHeadFixed];
    return correct;
  }
};

void run_joint_cross_entropy(const KernelCall& call) {
  const JointStats joint(call, 0);
  double loss = 0.0;
  std::int32_t correct = 0;
  for (std::int64_t t = 0; t < joint.tokens; ++t) {
    loss += joint.loss(t);
    correct += joint.is_correct(t) ? 1 : 0;
  }
  *call.out(0) = static_cast<float>(loss);
  *call.out<std::int32_t>(1) = correct;
}

void run_joint_token_losses(const KernelCall& call) {
  const JointStats joint(call, 0);
  for (std::int64_t t = 0; t < joint.tokens; ++t) call.out(0)[t] = static_cast<float>(joint.loss(t));
}

// dloss[1], sums[P·T, 2], fixed[P·T, 2], targets → dsums
void run_joint_cross_entropy_grad(const KernelCall& call) {
  const JointStats joint(call, 1);
  const float dloss = *call.in(0);
  float* const dsums = call.out(0);
  std::fill_n(dsums, call.in_shape(1).num_elements(), 0.0F);
  for (std::int64_t t = 0; t < joint.tokens; ++t) {
    if (joint.targets[t] < 0) continue;
    const double lse = joint.lse(t);
    for (std::int64_t p = 0; p < joint.parts; ++p)
      dsums[joint.place(p, t)] = dloss * static_cast<float>(std::exp(joint.lse_of(p, t) - lse));
    dsums[joint.place(joint.targets[t] / joint.rows, t) + 1] = -dloss;
  }
}

}  // namespace

void register_head_stats(KernelTable& table);
void register_head_stats(KernelTable& table) {
  table.add("head_stats", DType::f32, DeviceKind::cpu,
            {.run = run_head_stats, .workspace = [](const OpTypes& types) {
               return cpu::RowStatistics::bytes(types.shape(0)[0], types.shape(1)[0]);
             }});
  table.add("head_stats_grad", DType::f32, DeviceKind::cpu,
            {.run = run_head_stats_grad, .workspace = [](const OpTypes& types) {
               const std::int64_t tokens = types.shape(1)[0], rows = types.shape(2)[0];
               return static_cast<std::size_t>(cpu::token_block(tokens, rows) * rows) * sizeof(float);
             }});
  const auto add = [&](std::string_view op, void (*run)(const KernelCall&)) {
    table.add(op, DType::f32, DeviceKind::cpu, {.run = run, .workspace = nullptr});
  };
  add("joint_cross_entropy", run_joint_cross_entropy);
  add("joint_token_losses", run_joint_token_losses);
  add("joint_cross_entropy_grad", run_joint_cross_entropy_grad);
}

}  // namespace farskip
