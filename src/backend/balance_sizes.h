// SPDX-License-Identifier: Apache-2.0
#pragma once
// What the router and the load-balancing loss mean, the same for every backend.

#include "farskip/ops/ops.h"

namespace farskip {

/// Added to a sum of a token's scores before something is divided by it: they may all have underflowed to
/// zero (DeepSeek-V3).
inline constexpr float kTinyScoreSum = 1e-20F;

/// Sizes of scores[T, E] and indices[T, K], T in sequences of S.
struct BalanceSizes {
  BalanceSizes(const ops::BalanceLoss& a, const Shape& scores, const Shape& indices)
      : length(a.sequence_length),
        sequences(scores[0] / a.sequence_length),
        num_experts(scores[1]),
        top_k(indices[1]) {}

  std::int64_t length, sequences, num_experts, top_k;

  /// f_e · P_e is this times (times e was chosen) times (Σ of its scores).
  double loss_factor() const {
    return static_cast<double>(num_experts) /
           (static_cast<double>(top_k) * static_cast<double>(length) * static_cast<double>(length));
  }
};

}  // namespace farskip
