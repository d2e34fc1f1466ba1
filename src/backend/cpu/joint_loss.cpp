// SPDX-License-Identifier: Apache-2.0
// Cross-entropy from what the parts of a vocabulary say of each token.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/head_blocks.h"
#include "farskip/backend/kernel.h"
#include "farskip/ops/ops.h"

namespace farskip {
namespace {

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

void register_joint_loss(KernelTable& table);

void register_joint_loss(KernelTable& table) {
  const auto add = [&](std::string_view op, void (*run)(const KernelCall&)) {
    table.add(op, DType::f32, DeviceKind::cpu, {.run = run, .workspace = nullptr});
  };
  add("joint_cross_entropy", run_joint_cross_entropy);
  add("joint_token_losses", run_joint_token_losses);
  add("joint_cross_entropy_grad", run_joint_cross_entropy_grad);
}

}  // namespace farskip
