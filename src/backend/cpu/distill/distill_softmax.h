// SPDX-License-Identifier: Apache-2.0
#pragma once
// Parts that the losses of distillation over the full vocabulary (distill_row.cpp) and over the largest
// logits of the teacher (distill_events.cpp) have in common.

#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "backend/cpu/distill/distill_row.h"
#include "backend/cpu/vector_math.h"
#include "backend/divergence.h"

namespace farskip::cpu {

inline constexpr float kLowest = -std::numeric_limits<float>::infinity();

/// probability_i = exp((x_i - max) scale) / sum.
struct Softmax {
  float max = kLowest, scale = 1.0F, inverse_sum = 0.0F;
  double sum = 0.0;

  float at(float x) const { return fast_exp((x - max) * scale) * inverse_sum; }
  double log_at(float x) const { return static_cast<double>((x - max) * scale) - std::log(sum); }
  /// log Σ exp(x_i scale).
  double log_sum() const { return static_cast<double>(max) * static_cast<double>(scale) + std::log(sum); }
};
Softmax softmax_of(std::span<const float> x, double temperature);

/// log(Σ exp(s_i scale) / Σ exp(t_i scale)), exactly 0 for equal rows. -inf in a row stands for no logit.
double log_sum_ratio(std::span<const float> student, const Softmax& q, std::span<const float> teacher,
                     const Softmax& p);

/// Place of the first x that is `value`.
std::int64_t first_at(std::span<const float> x, float value);

/// What the weighted divergences and the cross-entropy of a token add up to.
TokenDistance distance_of(const Divergences& d, double student_loss, const ops::DistillLoss& a);

}  // namespace farskip::cpu
