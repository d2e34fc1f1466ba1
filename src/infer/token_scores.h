// SPDX-License-Identifier: Apache-2.0
#pragma once
// Log-probabilities of tokens, from the logits of a run.

#include <span>
#include <vector>

#include "farskip/tensor/tensor.h"
#include "infer/generate.h"

namespace farskip {

/// What is asked of a row of logits: the score of `token`, with so many likely tokens.
struct ScoredRow {
  std::int64_t row = 0;
  std::int32_t token = 0;
  std::int64_t num_likely = 0;
};
/// log softmax(logits[row])[token], summed in double, of each. Of equally likely tokens the lower id is
/// first.
std::vector<TokenScore> score_rows(const TensorView& logits, std::span<const ScoredRow> rows);

}  // namespace farskip
