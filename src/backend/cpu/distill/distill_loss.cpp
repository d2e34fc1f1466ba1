// SPDX-License-Identifier: Apache-2.0
// The losses of distillation, fused with both heads: logits of student and teacher are held for one block of
// tokens at a time.
#include <algorithm>

#include "backend/cpu/distill/distill_row.h"
#include "backend/cpu/heads/head_blocks.h"
#include "backend/cpu/parallel.h"
#include "farskip/backend/kernel.h"

namespace farskip {
namespace {

using cpu::GradientRequest;
using cpu::Head;
using cpu::token_block;
using cpu::TokenDistance;
using ops::DistillLoss;

/// Inputs of a loss, from input `first` of a call on.
struct Problem {
  std::int64_t tokens, vocabulary;
  Head student, teacher;  // without a live teacher its h is nullptr
  const std::int32_t* indices = nullptr;
  const float *log_probs = nullptr, *log_tail = nullptr, *target_log_prob = nullptr;
  const std::int32_t* targets;

  Problem(const KernelCall& call, std::size_t first, bool cached)
      : tokens(call.in_shape(first)[0]),
        vocabulary(call.in_shape(first + 1)[0]),
        student{call.in(first), call.in(first + 1), call.in_shape(first)[1], vocabulary},
        targets(call.in<std::int32_t>(first + (cached ? 6 : 4))) {
    if (cached) {
      indices = call.in<std::int32_t>(first + 2);
      log_probs = call.in(first + 3);
      log_tail = call.in(first + 4);
      target_log_prob = call.in(first + 5);
    } else {
      teacher = {call.in(first + 2), call.in(first + 3), call.in_shape(first + 2)[1], vocabulary};
    }
    cpu::check_targets(targets, tokens, vocabulary);
  }
};

std::size_t workspace_bytes(std::int64_t tokens, std::int64_t vocabulary, std::int64_t models) {
  return static_cast<std::size_t>(tokens) * sizeof(TokenDistance) +
         static_cast<std::size_t>(models * token_block(tokens, vocabulary) * vocabulary) * sizeof(float);
}

TokenDistance compare_token(const Problem& p, std::int64_t token, float* student, float* teacher,
                            const DistillLoss& a, GradientRequest request) {
  const auto size = static_cast<std::size_t>(p.vocabulary);
  const std::int32_t target = p.targets[token];
  if (target < 0) {
    if (request.gradient) std::fill_n(student, size, 0.0F);
    return {};
  }
  if (teacher != nullptr && a.top_k == 0)
    return cpu::compare_logits({student, size}, {teacher, size}, target, a, request);
  if (teacher != nullptr) return cpu::compare_events({student, size}, {teacher, size}, target, a, request);
  const auto k = static_cast<std::size_t>(a.top_k);
  return cpu::compare_kept({student, size},
                           {{p.indices + token * a.top_k, k},
                            {p.log_probs + token * a.top_k, k},
                            p.log_tail[token],
                            static_cast<double>(p.target_log_prob[token])},
                           target, a, request);
}

/// Sums in order of tokens.
void store_sums(const TokenDistance* tokens, std::int64_t count, float* loss_sum, double* stats) {
  double loss = 0.0;
  std::fill_n(stats, ops::kDistillStats.size(), 0.0);
  for (std::int64_t t = 0; t < count; ++t) {
    const TokenDistance& d = tokens[t];
    loss += d.loss;
    const double values[] = {d.kl,           d.reverse_kl, d.jsd,    d.student_loss,
                             d.teacher_loss, d.agreement,  d.correct};
    for (std::size_t i = 0; i < ops::kDistillStats.size(); ++i) stats[i] += values[i];
  }
  *loss_sum = static_cast<float>(loss);
}

/// `accumulate`: the input that dw is added to.
void run_loss(const KernelCall& call, bool cached, bool gradient, std::size_t accumulate) {
  const auto& a = call.get<DistillLoss>();
  const Problem p(call, gradient ? 1 : 0, cached);
  FARSKIP_CHECK(call.workspace.size() >= workspace_bytes(p.tokens, p.vocabulary, cached ? 1 : 2),
                "workspace of {} bytes", call.workspace.size());
  auto* distances = reinterpret_cast<TokenDistance*>(call.workspace.data());
  auto* student = reinterpret_cast<float*>(distances + p.tokens);
  const std::int64_t block = token_block(p.tokens, p.vocabulary);
  float* const teacher = cached ? nullptr : student + block * p.vocabulary;
  const GradientRequest request{gradient, gradient ? *call.in(0) : 0.0F};
  const float* dw_so_far = gradient && call.has(accumulate) ? call.in(accumulate) : nullptr;
  for (std::int64_t first = 0; first < std::max<std::int64_t>(p.tokens, 1); first += block) {
    const std::int64_t count = std::min(block, p.tokens - first);  // 0 without tokens: dw is still written
    cpu::compute_logits(p.student, first, count, student);
    if (teacher != nullptr) cpu::compute_logits(p.teacher, first, count, teacher);
    cpu::parallel_for(count, [&](std::int64_t i) {
      distances[first + i] =
          compare_token(p, first + i, student + i * p.vocabulary,
                        teacher == nullptr ? nullptr : teacher + i * p.vocabulary, a, request);
    });
    if (!gradient) continue;
    cpu::differentiate_hidden(p.student, first, count, student, call.out(2));
    if (!a.trains_head) continue;
    cpu::differentiate_head(p.student, first, count, student, dw_so_far, call.out(3));
    dw_so_far = call.out(3);
  }
  store_sums(distances, p.tokens, call.out(0), call.out<double>(1));
}

void run_teacher_top_k(const KernelCall& call) {
  const auto& a = call.get<ops::KeepTopK>();
  const std::int64_t tokens = call.in_shape(0)[0], vocabulary = call.in_shape(1)[0];
  const Head head{call.in(0), call.in(1), call.in_shape(0)[1], vocabulary};
  const auto* targets = call.in<std::int32_t>(2);
  auto* logits = reinterpret_cast<float*>(call.workspace.data());
  const auto size = static_cast<std::size_t>(vocabulary), k = static_cast<std::size_t>(a.top_k);
  const std::int64_t block = token_block(tokens, vocabulary);
  for (std::int64_t first = 0; first < tokens; first += block) {
    const std::int64_t count = std::min(block, tokens - first);
    cpu::compute_logits(head, first, count, logits);
    cpu::parallel_for(count, [&](std::int64_t i) {
      const std::int64_t t = first + i;
      const std::span<float> row{logits + i * vocabulary, size};
      call.out(3)[t] = targets[t] < 0 ? 0.0F : static_cast<float>(cpu::log_probability(row, targets[t]));
      cpu::find_events(row, a.temperature, {call.out<std::int32_t>(0) + t * a.top_k, k},
                       {call.out(1) + t * a.top_k, k}, call.out(2)[t]);
    });
  }
}

}  // namespace

void register_distill_loss(KernelTable& table);

void register_distill_loss(KernelTable& table) {
  const auto add = [&](std::string_view op, void (*run)(const KernelCall&),
                       std::size_t (*workspace)(const OpTypes&)) {
    table.add(op, DType::f32, DeviceKind::cpu, {.run = run, .workspace = workspace});
  };
  add(
      "distill_loss", [](const KernelCall& call) { run_loss(call, false, false, 0); },
      [](const OpTypes& t) { return workspace_bytes(t.shape(0)[0], t.shape(1)[0], 2); });
  add(
      "distill_loss_grad", [](const KernelCall& call) { run_loss(call, false, true, 6); },
      [](const OpTypes& t) { return workspace_bytes(t.shape(1)[0], t.shape(2)[0], 2); });
  add(
      "cached_distill_loss", [](const KernelCall& call) { run_loss(call, true, false, 0); },
      [](const OpTypes& t) { return workspace_bytes(t.shape(0)[0], t.shape(1)[0], 1); });
  add(
      "cached_distill_loss_grad", [](const KernelCall& call) { run_loss(call, true, true, 8); },
      [](const OpTypes& t) { return workspace_bytes(t.shape(1)[0], t.shape(2)[0], 1); });
  add("teacher_top_k", run_teacher_top_k,
      [](const OpTypes& t) { return workspace_bytes(t.shape(0)[0], t.shape(1)[0], 1); });
}

}  // namespace farskip
