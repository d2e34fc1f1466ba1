// SPDX-License-Identifier: Apache-2.0
#pragma once
// What the losses that are fused with a head have in common: the logits of one block of tokens at a time, and
// the products over such a block.

#include <algorithm>

#include "backend/cpu/dense/matmul.h"
#include "backend/cpu/micro_kernel.h"
#include "farskip/base/error.h"

namespace farskip::cpu {

/// Hidden states h[T, hidden] and the head w[vocabulary, hidden] that they meet.
struct Head {
  const float *h = nullptr, *w = nullptr;
  std::int64_t hidden = 0, vocabulary = 0;
};

/// Tokens whose logits are held at once: about 64 MiB of them a model, whatever the number of tokens.
inline std::int64_t token_block(std::int64_t tokens, std::int64_t vocabulary) {
  const std::int64_t most =
      std::clamp<std::int64_t>((1 << 24) / std::max<std::int64_t>(vocabulary, 1), 64, 1024);
  return tokens == 0 ? 1 : ceil_div(tokens, ceil_div(tokens, most));
}

inline void check_targets(const std::int32_t* targets, std::int64_t tokens, std::int64_t vocabulary) {
  for (std::int64_t t = 0; t < tokens; ++t)
    FARSKIP_CHECK(targets[t] >= -1 && targets[t] < vocabulary, "target {} of token {}, vocabulary {}",
                  targets[t], t, vocabulary);
}

/// logits[count, vocabulary] of tokens [first, first + count).
inline void compute_logits(const Head& head, std::int64_t first, std::int64_t count, float* logits) {
  multiply({.transpose_b = true,
            .m = count,
            .n = head.vocabulary,
            .k = head.hidden,
            .a = head.h + first * head.hidden,
            .lda = head.hidden,
            .b = head.w,
            .ldb = head.hidden,
            .c = logits,
            .ldc = head.vocabulary});
}

/// The rows of dh[T, hidden] of tokens [first, first + count), from the gradient of their logits.
inline void differentiate_hidden(const Head& head, std::int64_t first, std::int64_t count,
                                 const float* dlogits, float* dh) {
  multiply({.m = count,
            .n = head.hidden,
            .k = head.vocabulary,
            .a = dlogits,
            .lda = head.vocabulary,
            .b = head.w,
            .ldb = head.hidden,
            .c = dh + first * head.hidden,
            .ldc = head.hidden});
}

/// dw[vocabulary, hidden]: what these tokens add to `dw_so_far` (may be dw itself, or nullptr).
inline void differentiate_head(const Head& head, std::int64_t first, std::int64_t count, const float* dlogits,
                               const float* dw_so_far, float* dw) {
  multiply({.transpose_a = true,
            .m = head.vocabulary,
            .n = head.hidden,
            .k = count,
            .a = dlogits,
            .lda = head.vocabulary,
            .b = head.h + first * head.hidden,
            .ldb = head.hidden,
            .c = dw,
            .ldc = head.hidden,
            .accumulate = dw_so_far});
}

}  // namespace farskip::cpu
