// SPDX-License-Identifier: Apache-2.0
// Cross-entropy fused with the head.
#include "backend/cpu/heads/loss_rows.h"
#include "farskip/ops/ops.h"

namespace farskip {
namespace {

/// What a token adds to the loss: 0 where it is not counted.
struct TokenLoss {
  double loss = 0.0;
  std::int32_t correct = 0;
};

TokenLoss finish_token(cpu::Partial total, float target_logit) {
  return {cpu::log_sum_exp(total) - static_cast<double>(target_logit), target_logit >= total.max ? 1 : 0};
}

/// Sum in order of tokens.
void store_sums(const TokenLoss* tokens, std::int64_t count, float* loss_sum, std::int32_t* num_correct) {
  double loss = 0.0;
  std::int32_t correct = 0;
  for (std::int64_t t = 0; t < count; ++t) {
    loss += tokens[t].loss;
    correct += tokens[t].correct;
  }
  *loss_sum = static_cast<float>(loss);
  *num_correct = correct;
}

std::size_t loss_bytes(std::int64_t tokens) {
  return static_cast<std::size_t>(tokens) * sizeof(TokenLoss);
}

std::size_t forward_bytes(std::int64_t tokens, std::int64_t vocabulary) {
  return loss_bytes(tokens) + cpu::RowStatistics::bytes(tokens, vocabulary);
}

/// The loss of each token, in the workspace.
const TokenLoss* compute_losses(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(0)[0], vocabulary = call.in_shape(1)[0];
  cpu::check_targets(call.in<std::int32_t>(2), tokens, vocabulary);
  FARSKIP_CHECK(call.workspace.size() >= forward_bytes(tokens, vocabulary), "workspace of {} bytes",
                call.workspace.size());
  auto* losses = reinterpret_cast<TokenLoss*>(call.workspace.data());
  std::fill_n(losses, tokens, TokenLoss{});
  const cpu::RowStatistics statistics(call.workspace.subspan(loss_bytes(tokens)), tokens, vocabulary);
  cpu::for_each_total(call, {0, vocabulary}, statistics,
                      [&](std::int64_t t, cpu::Partial total, float target_logit) {
                        losses[t] = finish_token(total, target_logit);
                      });
  return losses;
}

void run_linear_cross_entropy(const KernelCall& call) {
  store_sums(compute_losses(call), call.in_shape(0)[0], call.out(0), call.out<std::int32_t>(1));
}

void run_token_losses(const KernelCall& call) {
  const TokenLoss* losses = compute_losses(call);
  for (std::int64_t t = 0; t < call.in_shape(0)[0]; ++t) call.out(0)[t] = static_cast<float>(losses[t].loss);
}

std::size_t gradient_bytes(std::int64_t tokens, std::int64_t vocabulary) {
  return loss_bytes(tokens) +
         static_cast<std::size_t>(cpu::token_block(tokens, vocabulary) * vocabulary) * sizeof(float);
}

void run_linear_cross_entropy_grad(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(1)[0], vocabulary = call.in_shape(2)[0];
  const cpu::Head head{call.in(1), call.in(2), call.in_shape(1).back(), vocabulary};
  const float dloss = *call.in(0);
  const auto* targets = call.in<std::int32_t>(3);
  cpu::check_targets(targets, tokens, vocabulary);
  FARSKIP_CHECK(call.workspace.size() >= gradient_bytes(tokens, vocabulary), "workspace of {} bytes",
                call.workspace.size());
  auto* losses = reinterpret_cast<TokenLoss*>(call.workspace.data());
  cpu::run_blocks(head, tokens, reinterpret_cast<float*>(losses + tokens), call.has(4) ? call.in(4) : nullptr,
                  call.out(2), call.out(3), [&](std::int64_t t, float* row) {
                    losses[t] = {};
                    if (targets[t] < 0) return (void)std::fill_n(row, vocabulary, 0.0F);
                    const float target_logit = row[targets[t]];
                    losses[t] = finish_token(cpu::scale_softmax(row, vocabulary, dloss), target_logit);
                    row[targets[t]] -= dloss;
                  });
  store_sums(losses, tokens, call.out(0), call.out<std::int32_t>(1));
}

}  // namespace

void register_loss(KernelTable& table);

void register_loss(KernelTable& table) {
  const auto forward_workspace = [](const OpTypes& types) {
    return forward_bytes(types.shape(0)[0], types.shape(1)[0]);
  };
  table.add("linear_cross_entropy", DType::f32, DeviceKind::cpu,
            {.run = run_linear_cross_entropy, .workspace = forward_workspace});
  table.add("token_losses", DType::f32, DeviceKind::cpu,
            {.run = run_token_losses, .workspace = forward_workspace});
  table.add("linear_cross_entropy_grad", DType::f32, DeviceKind::cpu,
            {.run = run_linear_cross_entropy_grad, .workspace = [](const OpTypes& types) {
               return gradient_bytes(types.shape(1)[0], types.shape(2)[0]);
             }});
}

}  // namespace farskip
