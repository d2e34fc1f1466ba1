#pragma once
// One token's comparison of a student with its teacher: the rows of logits in, divergences and the gradient
// with respect to the student's logits out. Definitions: farskip/ops/distill_ops.h.

#include <cstdint>
#include <span>

#include "farskip/ops/distill_ops.h"

namespace farskip::cpu {

/// What one token adds to the sums.
struct TokenDistance {
  double loss = 0.0;  // weighted
  double kl = 0.0, reverse_kl = 0.0, jsd = 0.0, student_loss = 0.0, teacher_loss = 0.0;
  double agreement = 0.0, correct = 0.0;
};

/// A teacher's distribution over its largest logits and the rest.
struct TeacherEvents {
  std::span<const std::int32_t> indices;  // [K], by descending logit
  std::span<const float> log_probs;       // [K + 1]: the last is that of the rest
  double target_log_prob = 0.0;           // without temperature
};

/// Where `gradient` is set, student[V] becomes dloss times the gradient of the weighted loss.
struct GradientRequest {
  bool gradient = false;
  float dloss = 0.0F;
};

/// Over the full vocabulary.
TokenDistance compare_logits(std::span<float> student, std::span<const float> teacher, std::int32_t target,
                             const ops::DistillLoss& a, GradientRequest request);
/// Over the events of the teacher. The student's logits are changed on the way and come back as they were
/// without a gradient.
TokenDistance compare_events(std::span<float> student, const TeacherEvents& teacher, std::int32_t target,
                             const ops::DistillLoss& a, GradientRequest request);

/// The `indices.size()` largest logits, descending, ties to the lower id, and the log-probabilities of these
/// events and of the rest (-inf where nothing is left). logits as in compare_events.
void find_events(std::span<float> logits, double temperature, std::span<std::int32_t> indices,
                 std::span<float> log_probs);
/// Log-probability of one token.
double log_probability(std::span<const float> logits, std::int32_t token);

}  // namespace farskip::cpu
