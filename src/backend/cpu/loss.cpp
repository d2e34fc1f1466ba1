// SPDX-License-Identifier: Apache-2.0
// Cross-entropy fused with the head. The forward never holds more than a tile of logits; the gradient
// holds the logits of one block of tokens.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/head_blocks.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/vector_math.h"
#include "farskip/backend/kernel.h"
#include "farskip/ops/ops.h"

namespace farskip {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr std::int64_t kTokens = 20 * cpu::kMicroRows, kColumns = 256;  // tile of logits on the stack
constexpr std::int64_t kChunk = 4096;                                   // vocabulary of one partial result

/// Softmax statistics of some logits of one token: Σ exp(logit) = sum * exp(max).
struct Partial {
  float max = kLowest;
  float sum = 0.0F;
};

float largest(const float* x, std::int64_t n) {
  float max = kLowest;
#pragma omp simd reduction(max : max)
  for (std::int64_t i = 0; i < n; ++i) max = x[i] > max ? x[i] : max;
  return max;
}

/// Σ exp(x - max), and the terms in `terms` (may be x).
float sum_exp(const float* x, std::int64_t n, float max, float* terms) {
  float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) {
    const float e = cpu::fast_exp(x[i] - max);
    terms[i] = e;
    sum += e;
  }
  return sum;
}

/// What a token adds to the loss: 0 where it is not counted.
struct TokenLoss {
  double loss = 0.0;
  std::int32_t correct = 0;
};

double log_sum_exp(Partial total) {
  return static_cast<double>(total.max) + std::log(static_cast<double>(total.sum));
}

TokenLoss finish_token(Partial total, float target_logit) {
  return {log_sum_exp(total) - static_cast<double>(target_logit), target_logit >= total.max ? 1 : 0};
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

// ---- forward -------------------------------------------------------------------------------------

struct ForwardBuffers {
  std::int64_t tokens, chunks;
  TokenLoss* losses;     // [T]
  Partial* partials;     // [T, chunks]
  float* target_logits;  // [T]

  static std::size_t bytes(std::int64_t tokens, std::int64_t vocabulary) {
    return static_cast<std::size_t>(tokens) *
           (sizeof(TokenLoss) +
            sizeof(Partial) * static_cast<std::size_t>(cpu::ceil_div(vocabulary, kChunk)) + sizeof(float));
  }
  ForwardBuffers(std::span<std::byte> workspace, std::int64_t num_tokens, std::int64_t vocabulary)
      : tokens(num_tokens), chunks(cpu::ceil_div(vocabulary, kChunk)) {
    FARSKIP_CHECK(workspace.size() >= bytes(num_tokens, vocabulary), "workspace of {} bytes",
                  workspace.size());
    losses = reinterpret_cast<TokenLoss*>(workspace.data());
    partials = reinterpret_cast<Partial*>(losses + tokens);
    target_logits = reinterpret_cast<float*>(partials + tokens * chunks);
  }
};

/// Tokens [t0, t0 + m) against one chunk of the `own` ids.
void forward_tile(const KernelCall& call, const Range& own, const ForwardBuffers& buffers, std::int64_t t0,
                  std::int64_t m, std::int64_t chunk) {
  alignas(64) float logits[kTokens * kColumns];
  const std::int64_t hidden = call.in_shape(0).back();
  const auto* targets = call.in<std::int32_t>(2);
  Partial partial[kTokens];
  const std::int64_t end = std::min(own.count, (chunk + 1) * kChunk);
  for (std::int64_t v = chunk * kChunk; v < end; v += kColumns) {
    const std::int64_t n = std::min(kColumns, end - v);
    cpu::multiply_tile(false, true, m, n, hidden, call.in(0) + t0 * hidden, hidden, call.in(1) + v * hidden,
                       hidden, false, logits, kColumns);
    for (std::int64_t i = 0; i < m; ++i) {
      float* row = logits + i * kColumns;
      const std::int64_t target = targets[t0 + i] - own.first - v;
      if (target >= 0 && target < n) buffers.target_logits[t0 + i] = row[target];
      Partial& p = partial[i];
      const float max = std::max(p.max, largest(row, n));
      const float before = p.max == kLowest ? 0.0F : p.sum * cpu::fast_exp(p.max - max);
      p = {max, before + sum_exp(row, n, max, row)};
    }
  }
  for (std::int64_t i = 0; i < m; ++i) buffers.partials[(t0 + i) * buffers.chunks + chunk] = partial[i];
}

/// Calls finish(t, statistics, logit of the target) for each token that is counted. The logit is set where
/// the target is one of the `own` ids.
template <class Finish>
void for_each_total(const KernelCall& call, const Range& own, const ForwardBuffers& buffers,
                    const Finish& finish) {
  const std::int64_t tokens = buffers.tokens, blocks = cpu::ceil_div(tokens, kTokens);
  const auto* targets = call.in<std::int32_t>(2);
  cpu::parallel_for(blocks * buffers.chunks, [&](std::int64_t i) {
    const std::int64_t t0 = i % blocks * kTokens;
    forward_tile(call, own, buffers, t0, std::min(kTokens, tokens - t0), i / blocks);
  });
  cpu::parallel_ranges(tokens, 256, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      if (targets[t] < 0) continue;
      const Partial* parts = buffers.partials + t * buffers.chunks;
      Partial total;
      for (std::int64_t c = 0; c < buffers.chunks; ++c) total.max = std::max(total.max, parts[c].max);
      for (std::int64_t c = 0; c < buffers.chunks; ++c)
        total.sum += parts[c].sum * cpu::fast_exp(parts[c].max - total.max);
      finish(t, total, buffers.target_logits[t]);
    }
  });
}

/// The loss of each token, in the workspace.
const TokenLoss* compute_losses(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(0)[0], vocabulary = call.in_shape(1)[0];
  cpu::check_targets(call.in<std::int32_t>(2), tokens, vocabulary);
  const ForwardBuffers buffers(call.workspace, tokens, vocabulary);
  std::fill_n(buffers.losses, tokens, TokenLoss{});
  for_each_total(call, {0, vocabulary}, buffers, [&](std::int64_t t, Partial total, float target_logit) {
    buffers.losses[t] = finish_token(total, target_logit);
  });
  return buffers.losses;
}

void run_linear_cross_entropy(const KernelCall& call) {
  store_sums(compute_losses(call), call.in_shape(0)[0], call.out(0), call.out<std::int32_t>(1));
}

void run_token_losses(const KernelCall& call) {
  const TokenLoss* losses = compute_losses(call);
  for (std::int64_t t = 0; t < call.in_shape(0)[0]; ++t) call.out(0)[t] = static_cast<float>(losses[t].loss);
}

void run_head_stats(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(0)[0], rows = call.in_shape(1)[0];
  const auto& part = call.get<ops::VocabularyPart>();
  const Range own = part.own(rows);
  const auto* targets = call.in<std::int32_t>(2);
  cpu::check_targets(targets, tokens, part.size(rows));
  const ForwardBuffers buffers(call.workspace, tokens, rows);
  std::fill_n(call.out(0), tokens * ops::kNumHeadSums, 0.0F);
  std::fill_n(call.out(1), tokens * ops::kNumHeadFixed, 0.0F);
  for_each_total(call, own, buffers, [&](std::int64_t t, Partial total, float target_logit) {
    float *const sums = call.out(0) + t * ops::kNumHeadSums, *const fixed =
                                                                 call.out(1) + t * ops::kNumHeadFixed;
    const double lse = log_sum_exp(total);
    sums[0] = static_cast<float>(lse);
    sums[1] = targets[t] >= own.first && targets[t] < own.end() ? target_logit : 0.0F;
    fixed[0] = total.max;
    fixed[1] = static_cast<float>(lse - static_cast<double>(sums[0]));
  });
}

// ---- forward and gradient ------------------------------------------------------------------------

std::size_t gradient_bytes(std::int64_t tokens, std::int64_t vocabulary) {
  return static_cast<std::size_t>(tokens) * sizeof(TokenLoss) +
         static_cast<std::size_t>(cpu::token_block(tokens, vocabulary) * vocabulary) * sizeof(float);
}

/// One row of logits becomes `factor` times their softmax. What it was made of.
Partial scale_softmax(float* row, std::int64_t vocabulary, float factor) {
  Partial total;
  total.max = largest(row, vocabulary);
  // Summed in pieces, whose order is fixed, so that 100,000 small terms do not vanish beside the sum.
  double sum = 0.0;
  for (std::int64_t v = 0; v < vocabulary; v += kChunk)
    sum += static_cast<double>(sum_exp(row + v, std::min(kChunk, vocabulary - v), total.max, row + v));
  total.sum = static_cast<float>(sum);
  factor /= total.sum;
#pragma omp simd
  for (std::int64_t v = 0; v < vocabulary; ++v) row[v] *= factor;
  return total;
}

/// Products before and behind `differentiate_rows(first, count, logits)`, which turns the logits of a block
/// of tokens into their gradients.
template <class DifferentiateRows>
void run_blocks(const cpu::Head& head, std::int64_t tokens, float* logits, const float* dw_so_far, float* dh,
                float* dw, const DifferentiateRows& differentiate_rows) {
  const std::int64_t block = cpu::token_block(tokens, head.vocabulary);
  for (std::int64_t t = 0; t < std::max<std::int64_t>(tokens, 1); t += block) {
    const std::int64_t m = std::min(block, tokens - t);  // 0 without tokens: dw is still written
    cpu::compute_logits(head, t, m, logits);
    cpu::parallel_for(m, [&](std::int64_t i) { differentiate_rows(t + i, logits + i * head.vocabulary); });
    cpu::differentiate_hidden(head, t, m, logits, dh);
    cpu::differentiate_head(head, t, m, logits, dw_so_far, dw);
    dw_so_far = dw;
  }
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
  run_blocks(head, tokens, reinterpret_cast<float*>(losses + tokens), call.has(4) ? call.in(4) : nullptr,
             call.out(2), call.out(3), [&](std::int64_t t, float* row) {
               losses[t] = {};
               if (targets[t] < 0) return (void)std::fill_n(row, vocabulary, 0.0F);
               const float target_logit = row[targets[t]];
               losses[t] = finish_token(scale_softmax(row, vocabulary, dloss), target_logit);
               row[targets[t]] -= dloss;
             });
  store_sums(losses, tokens, call.out(0), call.out<std::int32_t>(1));
}

// dsums[T, 2], h, w, targets, [accumulate dw] → (dh, dw)
void run_head_stats_grad(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(1)[0], rows = call.in_shape(2)[0];
  const cpu::Head head{call.in(1), call.in(2), call.in_shape(1).back(), rows};
  const auto* targets = call.in<std::int32_t>(3);
  const auto& part = call.get<ops::VocabularyPart>();
  const Range own = part.own(rows);
  cpu::check_targets(targets, tokens, part.size(rows));
  run_blocks(head, tokens, reinterpret_cast<float*>(call.workspace.data()),
             call.has(4) ? call.in(4) : nullptr, call.out(0), call.out(1), [&](std::int64_t t, float* row) {
               if (targets[t] < 0) return (void)std::fill_n(row, rows, 0.0F);
               const float* const dsums = call.in(0) + t * ops::kNumHeadSums;
               scale_softmax(row, own.count, dsums[0]);
               std::fill(row + own.count, row + rows, 0.0F);
               if (targets[t] >= own.first && targets[t] < own.end()) row[targets[t] - own.first] += dsums[1];
             });
}

}  // namespace

void register_loss(KernelTable& table);

void register_loss(KernelTable& table) {
  const auto forward_workspace = [](const OpTypes& types) {
    return ForwardBuffers::bytes(types.shape(0)[0], types.shape(1)[0]);
  };
  table.add("linear_cross_entropy", DType::f32, DeviceKind::cpu,
            {.run = run_linear_cross_entropy, .workspace = forward_workspace});
  table.add("token_losses", DType::f32, DeviceKind::cpu,
            {.run = run_token_losses, .workspace = forward_workspace});
  table.add("linear_cross_entropy_grad", DType::f32, DeviceKind::cpu,
            {.run = run_linear_cross_entropy_grad, .workspace = [](const OpTypes& types) {
               return gradient_bytes(types.shape(1)[0], types.shape(2)[0]);
             }});
  table.add("head_stats", DType::f32, DeviceKind::cpu,
            {.run = run_head_stats, .workspace = forward_workspace});
  table.add("head_stats_grad", DType::f32, DeviceKind::cpu,
            {.run = run_head_stats_grad, .workspace = [](const OpTypes& types) {
               const std::int64_t tokens = types.shape(1)[0], rows = types.shape(2)[0];
               return static_cast<std::size_t>(cpu::token_block(tokens, rows) * rows) * sizeof(float);
             }});
}

}  // namespace farskip
