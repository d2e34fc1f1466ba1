// SPDX-License-Identifier: Apache-2.0
#pragma once
// Ops that compare a student with its teacher (part of the catalogue of ops.h, the same letters).
//
// Of a token with student logits s and teacher logits t, divided by the temperature τ: q = softmax(s/τ), p =
// softmax(t/τ). With top_k = K > 0 both are distributions over K + 1 events: the K largest teacher logits
// (ties to the lower id) and all the rest together, whose mass is exact. A student that computes the same
// logits as its teacher gets exactly zero of every divergence and of its gradient.
//
// In low precision hidden states, heads and residual streams of both models are low, and so are gradients
// with respect to h and x; losses, kept outputs, router logits and dw are f32.

#include <array>
#include <string_view>

#include "farskip/ops/ops.h"

namespace farskip::ops {

struct DistillLoss {
  double kl = 1.0;          // weight of KL(p || q), the forward one
  double reverse_kl = 0.0;  // of KL(q || p)
  double jsd = 0.0;         // of (KL(p || m) + KL(q || m)) / 2, m = (p + q) / 2
  double sft = 0.0;         // of the cross-entropy with the target; takes no temperature
  double temperature = 1.0;
  std::int64_t top_k = 0;   // 0: the full vocabulary
  bool trains_head = true;  // false: the gradient op has no output dw
  static void fields(auto& self, auto&& f) {
    f("kl", self.kl);
    f("reverse_kl", self.reverse_kl);
    f("jsd", self.jsd);
    f("sft", self.sft);
    f("temperature", self.temperature);
    f("top_k", self.top_k);
    f("trains_head", self.trains_head);
  }
};

/// Sums over counted tokens, in this order in the f64 output of the losses below. Divergences without
/// weight and temperature factor; those whose weight is 0 are not computed, but for kl.
inline constexpr std::array<std::string_view, 7> kDistillStats{
    "kl", "reverse_kl", "jsd", "student_loss", "teacher_loss", "agreement", "correct"};

struct DistillResult {
  ValueId loss_sum, stats;
};
/// Fused with both heads: h[T, H], w[V, H] of the student, ht[T, H'], wt[V, H'] of the teacher, targets
/// i32[T] (-1: not counted) → (loss_sum [1]: Σ over counted tokens of τ² (kl·KL + reverse_kl·… + jsd·…) +
/// sft·cross-entropy, stats f64[7]: kDistillStats). τ² keeps the size of gradients (Hinton et al. 2015).
/// Works on blocks of tokens: no [T, V] buffer exists. No gradient for the teacher.
DistillResult distill_loss(Builder& b, ValueId h, ValueId w, ValueId ht, ValueId wt, ValueId targets,
                           const DistillLoss& attributes);
// op "distill_loss_grad" (same attributes): dloss[1], h, w, ht, wt, targets, [accumulate dw] → (loss_sum,
// stats, dh, dw): recomputes the forward, so that one pass over the logits serves both.

// Over vocabularies that are cut over P ranks in the same way, without jsd and top_k: each rank compares its
// parts of the logits, all gather what they say, and each then has the loss of the whole. With p and q the
// distributions over the parts' masses, p_r and q_r those inside part r, the chain rule of the divergence
// (Cover and Thomas, Elements of Information Theory, 2.5) says KL = KL(p || q) + Σ_r p(r) KL(p_r || q_r).

struct DistillPart {
  DistillLoss loss;
  VocabularyPart part;
  static void fields(auto& self, auto&& f) {
    DistillLoss::fields(self.loss, f);
    VocabularyPart::fields(self.part, f);
  }
};
/// Columns of what a part says of a token, zeros where it is not counted.
enum class DistillSum : std::uint8_t {
  log_ratio,   // log(Σ e^(s/τ) / Σ e^(t/τ))
  kl,          // KL(p_r || q_r)
  reverse_kl,  // KL(q_r || p_r); 0 where it has no weight
  lse,         // log Σ e^s, without temperature
  target       // the target's s, 0 where another part has it
};
inline constexpr std::int64_t kNumDistillSums = 5;
/// Likewise, and no gradient flows through these.
enum class DistillFixed : std::uint8_t {
  teacher_lse,        // log Σ e^(t/τ)
  teacher_plain_lse,  // log Σ e^t
  teacher_target,     // the target's t
  max,                // the largest s
  best,               // the lowest id that has it
  teacher_max,
  teacher_best
};
inline constexpr std::int64_t kNumDistillFixed = 7;
struct DistillStats {
  ValueId sums, fixed;  // wide [T, 5], [T, 7]
};
/// h[T, H], w[V', H], ht[T, H'], wt[V', H'], targets i32[T] → the above. Ids are below 2^24.
DistillStats distill_stats(Builder& b, ValueId h, ValueId w, ValueId ht, ValueId wt, ValueId targets,
                           const DistillPart& attributes);
// op "distill_stats_grad" (same attributes): dsums[T, 5], h, w, ht, wt, targets, [accumulate dw] → (dh, dw).

struct JointDistill {
  DistillLoss loss;
  JointParts parts;
  static void fields(auto& self, auto&& f) {
    DistillLoss::fields(self.loss, f);
    JointParts::fields(self.parts, f);
  }
};
/// sums[P·T, 5] and fixed[P·T, 7] of all parts, one below the other, targets i32[T] → as distill_loss.
DistillResult joint_distill_loss(Builder& b, const DistillStats& stats, ValueId targets,
                                 const JointDistill& attributes);
// op "joint_distill_loss_grad" (same attributes): dloss[1], sums, fixed, targets → dsums[P·T, 5].

/// What is kept of a teacher: indices i32[T, K] of its largest logits, descending, log_probs[T, K] of them
/// and log_tail[T] of the rest together (both at the temperature), target_log_prob[T] (without temperature;
/// 0 where not counted).
struct TeacherTopK {
  ValueId indices, log_probs, log_tail, target_log_prob;
};
struct KeepTopK {
  std::int64_t top_k = 1;
  double temperature = 1.0;
  static void fields(auto& self, auto&& f) {
    f("top_k", self.top_k);
    f("temperature", self.temperature);
  }
};
/// ht[T, H'], wt[V, H'], targets i32[T] → the above.
TeacherTopK teacher_top_k(Builder& b, ValueId ht, ValueId wt, ValueId targets, const KeepTopK& attributes);
/// distill_loss with what was kept of the teacher; attributes.top_k is K.
DistillResult cached_distill_loss(Builder& b, ValueId h, ValueId w, const TeacherTopK& teacher,
                                  ValueId targets, const DistillLoss& attributes);
// op "cached_distill_loss_grad" (same attributes): dloss[1], h, w, indices, log_probs, log_tail,
// target_log_prob, targets, [accumulate dw] → (loss_sum, stats, dh, dw).

struct Weight {
  double weight = 1.0;
  static void fields(auto& self, auto&& f) { f("weight", self.weight); }
};
/// x[T, H], y[T, H], targets, [token_weights f32[T]] → [1]: weight · Σ over counted tokens of
/// token_weight · mean_H (x - y)². Gradient for x only.
ValueId squared_difference(Builder& b, ValueId x, ValueId y, ValueId targets, double weight,
                           ValueId token_weights = {});
// op "squared_difference_grad" (same attributes): dloss[1], x, y, targets, [token_weights] → dx.

struct Sequences {
  std::int64_t sequence_length = 1;
  static void fields(auto& self, auto&& f) { f("sequence_length", self.sequence_length); }
};
inline constexpr double kTinySquare = 1e-30;  // the least q + m below
/// y[T, H], [factors f32[T]] → f32[T]: factor · 2 / (q + m), with q = mean_H y² of the token and m the mean
/// of q over the tokens of its sequence but the first, whose stream is larger by orders of magnitude in many
/// models (of a sequence of one token, its q). As token_weights they make a squared difference relative. No
/// gradient.
ValueId relative_weights(Builder& b, ValueId y, std::int64_t sequence_length, ValueId factors = {});

/// Router logits[T, E] of student and teacher, targets → [1]: weight · Σ over counted tokens of
/// KL(softmax(teacher) || softmax(student)). Gradient for the student only.
ValueId router_divergence(Builder& b, ValueId student, ValueId teacher, ValueId targets, double weight);
// op "router_divergence_grad" (same attributes): dloss[1], student, teacher, targets → dstudent.

/// Experts chosen by student and teacher, i32[T, K] each, targets → i32[1]: choices of the student, of
/// counted tokens, that are not among the teacher's for the same token.
ValueId count_routing_flips(Builder& b, ValueId student, ValueId teacher, ValueId targets);

}  // namespace farskip::ops
