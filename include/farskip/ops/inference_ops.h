// SPDX-License-Identifier: Apache-2.0
#pragma once
// Ops of inference (part of the catalogue of ops.h, the same letters). None has a gradient.

#include "farskip/ops/ops.h"

namespace farskip::ops {

// ---- sampling.cpp --------------------------------------------------------------------------------

struct Sample {
  std::int64_t num_ids = 0;  // only ids below it are chosen (a vocabulary is often padded); 0: all
  static void fields(auto& self, auto&& f) { f("num_ids", self.num_ids); }
};
struct SampleResult {
  ValueId ids, seen;  // seen: none where the op was given none
};
/// The next token of n texts: logits f32[n, V], real f32[n, 4] = {temperature, top_p, min_p,
/// repetition_penalty}, whole i32[n, 4] = {top_k, seed (low 32 bits, high 32 bits), counter}, optional seen
/// i32[n, ceil(V/32)] (bit i % 32 of word i / 32: id i stands in the row's text) → ids i32[n], and seen with
/// the bits of the chosen ids set (in place). Every row has parameters of its own, and what it gives depends
/// on nothing in other rows.
///
/// The rules are those of transformers (src/transformers/generation/logits_process.py), in its order:
/// 1. repetition_penalty r > 0: logits of seen ids are divided by r where positive, else multiplied by it
///    (Keskar et al. 2019, "CTRL"). 1: no penalty; so it is without `seen`.
/// 2. temperature T >= 0: logits are divided by T. 0: the largest logit is chosen, the lowest of equal ids,
///    and the rest is left out.
/// 3. top_k: ids are kept whose logits are at least the k-th largest. 0, or V and more: all.
/// 4. top_p: of these, the smallest set of the most likely ids whose probabilities sum to top_p at least
///    (Holtzman et al. 2020). From 1 on: all; the most likely one is always kept.
/// 5. min_p: of these, ids at least min_p times as likely as the most likely one. 0: all.
/// Ids of equal logits are kept or left out together. One uniform number (base/random.h, by seed and counter)
/// goes into the inverse of the cumulated probabilities of what is kept, in order of id. Probabilities are
/// whole multiples of 2^-40 of the largest one (backend/sampling_row.h), so no result depends on the order of
/// sums, and all devices choose the same id.
///
/// An id of logit -infinity is never chosen. Where the largest logit is no finite number (NaN counts as the
/// largest) the id is -1, and seen stays as it is.
SampleResult sample(Builder& b, ValueId logits, ValueId real, ValueId whole, ValueId seen,
                    const Sample& attributes);

}  // namespace farskip::ops
