// SPDX-License-Identifier: Apache-2.0
#pragma once
// One token's comparison of a student with its teacher: the rows of logits in, divergences and the gradient
// with respect to the student's logits out. Definitions: ops/distill_ops.h. Divergences are never
// negative; rows are used as scratch memory unless they are const.

#include <array>
#include <cstdint>
#include <span>

#include "ops/distill_ops.h"

namespace farskip::cpu {

/// What one token adds to the sums.
struct TokenDistance {
  double loss = 0.0;  // weighted
  double kl = 0.0, reverse_kl = 0.0, jsd = 0.0, student_loss = 0.0, teacher_loss = 0.0;
  double agreement = 0.0, correct = 0.0;
};

/// Where `gradient` is set, student[V] becomes dloss times the gradient of the weighted loss.
struct GradientRequest {
  bool gradient = false;
  float dloss = 0.0F;
};

/// Over the full vocabulary. Without a gradient the student's row stays as it is.
TokenDistance compare_logits(std::span<float> student, std::span<const float> teacher, std::int32_t target,
                             const ops::DistillLoss& a, GradientRequest request);
/// Over the a.top_k largest logits of the teacher and the rest.
TokenDistance compare_events(std::span<float> student, std::span<float> teacher, std::int32_t target,
                             const ops::DistillLoss& a, GradientRequest request);

/// A part of the vocabulary says this of a token, in the columns of ops::DistillStats. `target`:
/// in the rows; -1: another part has it. `first`: id of the rows' first element.
struct PartSays {
  std::array<float, ops::kNumDistillSums> sums{};
  std::array<float, ops::kNumDistillFixed> fixed{};
};
PartSays compare_part(std::span<const float> student, std::span<const float> teacher, std::int64_t target,
                      std::int64_t first, const ops::DistillLoss& a);
/// The student's row becomes the gradient of <dsums, sums>.
void differentiate_part(std::span<float> student, std::span<const float> teacher, std::int64_t target,
                        std::span<const float> dsums, const ops::DistillLoss& a);

/// What is kept of a teacher: its distribution over its largest logits and the rest.
struct KeptTeacher {
  std::span<const std::int32_t> indices;  // [K], by descending logit
  std::span<const float> log_probs;       // [K]
  float log_tail = 0.0F;                  // of the rest; not read where nothing is left
  double target_log_prob = 0.0;           // without temperature
};
/// The same over what is kept.
TokenDistance compare_kept(std::span<float> student, const KeptTeacher& teacher, std::int32_t target,
                           const ops::DistillLoss& a, GradientRequest request);

/// KL(softmax(teacher) || softmax(student)), without temperature.
double kl_divergence(std::span<const float> student, std::span<const float> teacher);
/// gradient[V]: `scale` times that of kl_divergence with respect to the student's logits.
void kl_gradient(std::span<const float> student, std::span<const float> teacher, float scale,
                 std::span<float> gradient);

/// The `indices.size()` largest logits, descending, ties to the lower id, and the log-probabilities of these
/// events and of the rest (-inf where nothing is left).
void find_events(std::span<float> logits, double temperature, std::span<std::int32_t> indices,
                 std::span<float> log_probs, float& log_tail);
/// Log-probability of one token.
double log_probability(std::span<const float> logits, std::int32_t token);

}  // namespace farskip::cpu
