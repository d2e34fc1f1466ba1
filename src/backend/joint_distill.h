// SPDX-License-Identifier: Apache-2.0
#pragma once
// The loss of distillation from what the parts of a vocabulary say of a token, for kernels on any device.

#include <cmath>
#include <cstdint>

#include "backend/divergence.h"
#include "farskip/backend/kernel.h"
#include "ops/distill_ops.h"

#ifdef __CUDACC__
#define FARSKIP_ANY_DEVICE __host__ __device__
#else
#define FARSKIP_ANY_DEVICE
#endif

namespace farskip {

/// sums[P·T, 5], fixed[P·T, 7] and targets[T] of "joint_distill_loss". A loop over the parts is short: each
/// function goes through it as often as it must.
struct JointDistillation {
  const float *sums, *fixed;
  const std::int32_t* targets;
  std::int64_t tokens, parts, rows;
  ops::DistillLoss a;

  FARSKIP_ANY_DEVICE double at(std::int64_t part, std::int64_t token, ops::DistillSum column) const {
    return static_cast<double>(
        sums[(part * tokens + token) * ops::kNumDistillSums + static_cast<std::int64_t>(column)]);
  }
  FARSKIP_ANY_DEVICE double at(std::int64_t part, std::int64_t token, ops::DistillFixed column) const {
    return static_cast<double>(
        fixed[(part * tokens + token) * ops::kNumDistillFixed + static_cast<std::int64_t>(column)]);
  }
  FARSKIP_ANY_DEVICE std::int64_t target_part(std::int64_t token) const { return targets[token] / rows; }

  /// log Σ exp over the parts.
  template <class Column>
  FARSKIP_ANY_DEVICE double lse(std::int64_t token, Column column) const {
    double top = at(0, token, column), sum = 0.0;
    for (std::int64_t r = 1; r < parts; ++r) top = std::fmax(top, at(r, token, column));
    for (std::int64_t r = 0; r < parts; ++r) sum += std::exp(at(r, token, column) - top);
    return top + std::log(sum);
  }

  /// Masses of a part for teacher and student, and log(q/p).
  struct Mass {
    double p, q, x;
  };
  /// The parts of a token share this: the teacher's mass over all of them, and the ratio.
  struct Whole {
    double teacher_lse, log_ratio;
  };
  // log_ratio is log Σ p e^(log_ratio of the part), exactly 0 where those are.
  FARSKIP_ANY_DEVICE Whole whole(std::int64_t token) const {
    const double teacher_lse = lse(token, ops::DistillFixed::teacher_lse);
    double gain = 0.0;
    for (std::int64_t r = 0; r < parts; ++r)
      gain += std::exp(at(r, token, ops::DistillFixed::teacher_lse) - teacher_lse) *
              std::expm1(at(r, token, ops::DistillSum::log_ratio));
    return {teacher_lse, std::log1p(gain)};
  }
  FARSKIP_ANY_DEVICE Mass mass(std::int64_t part, std::int64_t token, const Whole& all) const {
    const double p = std::exp(at(part, token, ops::DistillFixed::teacher_lse) - all.teacher_lse);
    const double x = at(part, token, ops::DistillSum::log_ratio) - all.log_ratio;
    return {p, p * std::exp(x), x};
  }
  FARSKIP_ANY_DEVICE double reverse_kl(std::int64_t token, const Whole& all) const {
    double sum = 0.0;
    for (std::int64_t r = 0; r < parts; ++r) {
      const Mass m = mass(r, token, all);
      sum += kl_term(m.q, m.p, -m.x) + m.q * at(r, token, ops::DistillSum::reverse_kl);
    }
    return sum;
  }

  /// The id of the largest logit, the lowest of equal ones.
  FARSKIP_ANY_DEVICE double best(std::int64_t token, ops::DistillFixed max, ops::DistillFixed id) const {
    std::int64_t part = 0;
    for (std::int64_t r = 1; r < parts; ++r)
      if (at(r, token, max) > at(part, token, max)) part = r;
    return at(part, token, id);
  }

  /// The weighted loss of a token that is counted; its kDistillStats.
  FARSKIP_ANY_DEVICE double measure(std::int64_t token, double* stats) const {
    const Whole all = whole(token);
    double kl = 0.0;
    for (std::int64_t r = 0; r < parts; ++r) {
      const Mass m = mass(r, token, all);
      kl += kl_term(m.p, m.q, m.x) + m.p * at(r, token, ops::DistillSum::kl);
    }
    const double chosen = at(target_part(token), token, ops::DistillSum::target);
    stats[0] = kl;
    stats[1] = a.reverse_kl > 0 ? reverse_kl(token, all) : 0.0;
    stats[2] = 0.0;
    stats[3] = lse(token, ops::DistillSum::lse) - chosen;
    stats[4] = lse(token, ops::DistillFixed::teacher_plain_lse) -
               at(target_part(token), token, ops::DistillFixed::teacher_target);
    stats[5] = best(token, ops::DistillFixed::max, ops::DistillFixed::best) ==
                       best(token, ops::DistillFixed::teacher_max, ops::DistillFixed::teacher_best)
                   ? 1.0
                   : 0.0;
    stats[6] = 1.0;
    for (std::int64_t r = 0; r < parts; ++r)
      if (chosen < at(r, token, ops::DistillFixed::max)) stats[6] = 0.0;
    return a.temperature * a.temperature * (a.kl * stats[0] + a.reverse_kl * stats[1]) + a.sft * stats[3];
  }

  /// The row of dsums[P·T, 5] of a token's part, zeros where the token is not counted.
  FARSKIP_ANY_DEVICE void differentiate(std::int64_t token, std::int64_t part, float dloss,
                                        float* dsums) const {
    float* const to = dsums + (part * tokens + token) * ops::kNumDistillSums;
    for (std::int64_t i = 0; i < ops::kNumDistillSums; ++i) to[i] = 0.0F;
    if (targets[token] < 0) return;
    const Whole all = whole(token);
    const Mass m = mass(part, token, all);
    const double scale = a.temperature * a.temperature * static_cast<double>(dloss),
                 sft = a.sft * static_cast<double>(dloss);
    double of_ratio = a.kl * probability_gain(m.p, m.q, m.x);
    if (a.reverse_kl > 0)
      of_ratio +=
          a.reverse_kl * m.q * (m.x + at(part, token, ops::DistillSum::reverse_kl) - reverse_kl(token, all));
    const auto set = [&](ops::DistillSum column, double value) {
      to[static_cast<std::int64_t>(column)] = static_cast<float>(value);
    };
    set(ops::DistillSum::log_ratio, scale * of_ratio);
    set(ops::DistillSum::kl, scale * a.kl * m.p);
    set(ops::DistillSum::reverse_kl, scale * a.reverse_kl * m.q);
    set(ops::DistillSum::lse,
        sft * std::exp(at(part, token, ops::DistillSum::lse) - lse(token, ops::DistillSum::lse)));
    if (part == target_part(token)) set(ops::DistillSum::target, -sft);
  }
};

/// Its sums, fixed and targets are those of the call from input `first` on.
inline JointDistillation joint_distillation(const KernelCall& call, std::size_t first) {
  const auto& a = call.get<ops::JointDistill>();
  const std::int64_t tokens = call.in_shape(first + 2)[0];
  return {call.in(first),
          call.in(first + 1),
          call.in<std::int32_t>(first + 2),
          tokens,
          tokens == 0 ? 0 : call.in_shape(first)[0] / tokens,
          a.parts.rows,
          a.loss};
}

}  // namespace farskip
