// SPDX-License-Identifier: Apache-2.0
#pragma once
// What cross-entropy over a whole vocabulary (loss.cpp) and over a part of one (head_stats.cpp) have in
// common. The forward never holds more than a tile of logits; a gradient holds the logits of one block of
// tokens.

#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/cpu/heads/head_blocks.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/vector_math.h"
#include "farskip/backend/kernel.h"

namespace farskip::cpu {

constexpr float kLowest = -std::numeric_limits<float>::infinity();
constexpr std::int64_t kTokens = 20 * kMicroRows, kColumns = 256;  // tile of logits on the stack
constexpr std::int64_t kChunk = 4096;                              // vocabulary of one partial result

/// Softmax statistics of some logits of one token: Σ exp(logit) = sum * exp(max).
struct Partial {
  float max = kLowest;
  float sum = 0.0F;
};

inline float largest(const float* x, std::int64_t n) {
  float max = kLowest;
#pragma omp simd reduction(max : max)
  for (std::int64_t i = 0; i < n; ++i) max = x[i] > max ? x[i] : max;
  return max;
}

/// Σ exp(x - max), and the terms in `terms` (may be x).
inline float sum_exp(const float* x, std::int64_t n, float max, float* terms) {
  float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) {
    const float e = fast_exp(x[i] - max);
    terms[i] = e;
    sum += e;
  }
  return sum;
}

inline double log_sum_exp(Partial total) {
  return static_cast<double>(total.max) + std::log(static_cast<double>(total.sum));
}

// ---- forward -------------------------------------------------------------------------------------

/// In scratch memory.
struct RowStatistics {
  std::int64_t tokens, chunks;
  Partial* partials;     // [T, chunks]
  float* target_logits;  // [T]

  static std::size_t bytes(std::int64_t tokens, std::int64_t vocabulary) {
    return static_cast<std::size_t>(tokens) *
           (sizeof(Partial) * static_cast<std::size_t>(ceil_div(vocabulary, kChunk)) + sizeof(float));
  }
  RowStatistics(std::span<std::byte> workspace, std::int64_t num_tokens, std::int64_t vocabulary)
      : tokens(num_tokens), chunks(ceil_div(vocabulary, kChunk)) {
    FARSKIP_CHECK(workspace.size() >= bytes(num_tokens, vocabulary), "workspace of {} bytes",
                  workspace.size());
    partials = reinterpret_cast<Partial*>(workspace.data());
    target_logits = reinterpret_cast<float*>(partials + tokens * chunks);
  }
};

/// Tokens [t0, t0 + m) against one chunk of the `own` ids.
inline void forward_tile(const KernelCall& call, const Range& own, const RowStatistics& statistics,
                         std::int64_t t0, std::int64_t m, std::int64_t chunk) {
  alignas(64) float logits[kTokens * kColumns];
  const std::int64_t hidden = call.in_shape(0).back();
  const auto* targets = call.in<std::int32_t>(2);
  Partial partial[kTokens];
  const std::int64_t end = std::min(own.count, (chunk + 1) * kChunk);
  for (std::int64_t v = chunk * kChunk; v < end; v += kColumns) {
    const std::int64_t n = std::min(kColumns, end - v);
    multiply_tile(false, true, m, n, hidden, call.in(0) + t0 * hidden, hidden, call.in(1) + v * hidden,
                  hidden, false, logits, kColumns);
    for (std::int64_t i = 0; i < m; ++i) {
      float* row = logits + i * kColumns;
      const std::int64_t target = targets[t0 + i] - own.first - v;
      if (target >= 0 && target < n) statistics.target_logits[t0 + i] = row[target];
      Partial& p = partial[i];
      const float max = std::max(p.max, largest(row, n));
      const float before = p.max == kLowest ? 0.0F : p.sum * fast_exp(p.max - max);
      p = {max, before + sum_exp(row, n, max, row)};
    }
  }
  for (std::int64_t i = 0; i < m; ++i) statistics.partials[(t0 + i) * statistics.chunks + chunk] = partial[i];
}

/// Calls finish(t, statistics, logit of the target) for each token that is counted. The logit is set where
/// the target is one of the `own` ids.
template <class Finish>
void for_each_total(const KernelCall& call, const Range& own, const RowStatistics& statistics,
                    const Finish& finish) {
  const std::int64_t tokens = statistics.tokens, blocks = ceil_div(tokens, kTokens);
  const auto* targets = call.in<std::int32_t>(2);
  parallel_for(blocks * statistics.chunks, [&](std::int64_t i) {
    const std::int64_t t0 = i % blocks * kTokens;
    forward_tile(call, own, statistics, t0, std::min(kTokens, tokens - t0), i / blocks);
  });
  parallel_ranges(tokens, 256, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t t = begin; t < end; ++t) {
      if (targets[t] < 0) continue;
      const Partial* parts = statistics.partials + t * statistics.chunks;
      Partial total;
      for (std::int64_t c = 0; c < statistics.chunks; ++c) total.max = std::max(total.max, parts[c].max);
      for (std::int64_t c = 0; c < statistics.chunks; ++c)
        total.sum += parts[c].sum * fast_exp(parts[c].max - total.max);
      finish(t, total, statistics.target_logits[t]);
    }
  });
}

// ---- gradient ------------------------------------------------------------------------------------

/// One row of logits becomes `factor` times their softmax. What it was made of.
inline Partial scale_softmax(float* row, std::int64_t vocabulary, float factor) {
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
void run_blocks(const Head& head, std::int64_t tokens, float* logits, const float* dw_so_far, float* dh,
                float* dw, const DifferentiateRows& differentiate_rows) {
  const std::int64_t block = token_block(tokens, head.vocabulary);
  for (std::int64_t t = 0; t < std::max<std::int64_t>(tokens, 1); t += block) {
    const std::int64_t m = std::min(block, tokens - t);  // 0 without tokens: dw is still written
    compute_logits(head, t, m, logits);
    parallel_for(m, [&](std::int64_t i) { differentiate_rows(t + i, logits + i * head.vocabulary); });
    differentiate_hidden(head, t, m, logits, dh);
    differentiate_head(head, t, m, logits, dw_so_far, dw);
    dw_so_far = dw;
  }
}

}  // namespace farskip::cpu
