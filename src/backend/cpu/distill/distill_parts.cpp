// SPDX-License-Identifier: Apache-2.0
// The losses of distillation over vocabularies that are cut: what a part says of each token, and the loss of
// all parts together.
#include <algorithm>

#include "backend/cpu/distill/distill_row.h"
#include "backend/cpu/heads/head_blocks.h"
#include "backend/cpu/parallel.h"
#include "backend/divergence.h"
#include "backend/joint_distill.h"
#include "farskip/backend/kernel.h"

namespace farskip {
namespace {

/// Inputs from input `first` of a call on.
struct PartProblem {
  const ops::DistillPart& a;
  std::int64_t tokens, rows;
  Range own;
  cpu::Head student, teacher;
  const std::int32_t* targets;

  PartProblem(const KernelCall& call, std::size_t first)
      : a(call.get<ops::DistillPart>()),
        tokens(call.in_shape(first)[0]),
        rows(call.in_shape(first + 1)[0]),
        own(a.part.own(rows)),
        student{call.in(first), call.in(first + 1), call.in_shape(first)[1], rows},
        teacher{call.in(first + 2), call.in(first + 3), call.in_shape(first + 2)[1], rows},
        targets(call.in<std::int32_t>(first + 4)) {
    cpu::check_targets(targets, tokens, a.part.size(rows));
  }

  /// The target of a token among the rows here; -1: it is not here.
  std::int64_t place(std::int64_t token) const {
    const std::int64_t at = targets[token] - own.first;
    return at >= 0 && at < own.count ? at : -1;
  }

  /// Calls use(token, row of the student, row of the teacher), and after each block of tokens
  /// done(first, count, logits of the student).
  template <class Use, class Done>
  void run(const KernelCall& call, const Use& use, const Done& done) const {
    const std::int64_t block = cpu::token_block(tokens, rows);
    auto* const mine = reinterpret_cast<float*>(call.workspace.data());
    float* const theirs = mine + block * rows;
    for (std::int64_t first = 0; first < std::max<std::int64_t>(tokens, 1); first += block) {
      const std::int64_t count = std::min(block, tokens - first);  // 0 without tokens: dw is still written
      cpu::compute_logits(student, first, count, mine);
      cpu::compute_logits(teacher, first, count, theirs);
      cpu::parallel_for(count, [&](std::int64_t i) { use(first + i, mine + i * rows, theirs + i * rows); });
      done(first, count, mine);
    }
  }
};

std::size_t workspace_bytes(std::int64_t tokens, std::int64_t rows) {
  return static_cast<std::size_t>(2 * cpu::token_block(tokens, rows) * rows) * sizeof(float);
}

void run_distill_stats(const KernelCall& call) {
  const PartProblem p(call, 0);
  const auto size = static_cast<std::size_t>(p.own.count);
  p.run(
      call,
      [&](std::int64_t t, const float* student, const float* teacher) {
        cpu::PartSays says;
        if (p.targets[t] >= 0)
          says = cpu::compare_part({student, size}, {teacher, size}, p.place(t), p.own.first, p.a.loss);
        std::copy(says.sums.begin(), says.sums.end(), call.out(0) + t * ops::kNumDistillSums);
        std::copy(says.fixed.begin(), says.fixed.end(), call.out(1) + t * ops::kNumDistillFixed);
      },
      [](std::int64_t, std::int64_t, const float*) {});
}

// dsums[T, 5], h, w, ht, wt, targets, [accumulate dw] → (dh, [dw])
void run_distill_stats_grad(const KernelCall& call) {
  const PartProblem p(call, 1);
  const auto size = static_cast<std::size_t>(p.own.count);
  const float* dw_so_far = call.has(6) ? call.in(6) : nullptr;
  p.run(
      call,
      [&](std::int64_t t, float* student, const float* teacher) {
        std::fill(student + size, student + p.rows, 0.0F);
        if (p.targets[t] < 0) return (void)std::fill_n(student, size, 0.0F);
        cpu::differentiate_part(
            {student, size}, {teacher, size}, p.place(t),
            {call.in(0) + t * ops::kNumDistillSums, static_cast<std::size_t>(ops::kNumDistillSums)},
            p.a.loss);
      },
      [&](std::int64_t first, std::int64_t count, const float* dlogits) {
        cpu::differentiate_hidden(p.student, first, count, dlogits, call.out(0));
        if (!p.a.loss.trains_head) return;
        cpu::differentiate_head(p.student, first, count, dlogits, dw_so_far, call.out(1));
        dw_so_far = call.out(1);
      });
}

// ---- all parts together --------------------------------------------------------------------------

/// It refuses targets that no part has.
JointDistillation checked_distillation(const KernelCall& call, std::size_t first) {
  const JointDistillation joint = joint_distillation(call, first);
  cpu::check_targets(joint.targets, joint.tokens, joint.parts * joint.rows);
  return joint;
}

void run_joint_distill_loss(const KernelCall& call) {
  const JointDistillation joint = checked_distillation(call, 0);
  double loss = 0.0;
  double* const stats = call.out<double>(1);
  std::fill_n(stats, ops::kDistillStats.size(), 0.0);
  for (std::int64_t t = 0; t < joint.tokens; ++t) {
    if (joint.targets[t] < 0) continue;
    double of_token[ops::kDistillStats.size()];
    loss += joint.measure(t, of_token);
    for (std::size_t i = 0; i < ops::kDistillStats.size(); ++i) stats[i] += of_token[i];
  }
  *call.out(0) = static_cast<float>(loss);
}

// dloss[1], sums[P·T, 5], fixed[P·T, 7], targets → dsums
void run_joint_distill_loss_grad(const KernelCall& call) {
  const JointDistillation joint = checked_distillation(call, 1);
  for (std::int64_t t = 0; t < joint.tokens; ++t)
    for (std::int64_t part = 0; part < joint.parts; ++part)
      joint.differentiate(t, part, *call.in(0), call.out(0));
}

}  // namespace

void register_distill_parts(KernelTable& table);

void register_distill_parts(KernelTable& table) {
  const auto add = [&](std::string_view op, void (*run)(const KernelCall&),
                       std::size_t (*workspace)(const OpTypes&)) {
    table.add(op, DType::f32, DeviceKind::cpu, {.run = run, .workspace = workspace});
  };
  add("distill_stats", run_distill_stats,
      [](const OpTypes& t) { return workspace_bytes(t.shape(0)[0], t.shape(1)[0]); });
  add("distill_stats_grad", run_distill_stats_grad,
      [](const OpTypes& t) { return workspace_bytes(t.shape(1)[0], t.shape(2)[0]); });
  add("joint_distill_loss", run_joint_distill_loss, nullptr);
  add("joint_distill_loss_grad", run_joint_distill_loss_grad, nullptr);
}

}  // namespace farskip
