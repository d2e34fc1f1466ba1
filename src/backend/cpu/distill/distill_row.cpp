// SPDX-License-Identifier: Apache-2.0
#include "backend/cpu/distill/distill_row.h"

#include <algorithm>

#include "backend/cpu/distill/distill_softmax.h"
#include "backend/cpu/reduce.h"

namespace farskip::cpu {
namespace {

// Summed in pieces, whose order is fixed, so that 100,000 small terms do not vanish beside the sum.
constexpr std::int64_t kPiece = 4096;

template <class F>
double sum_in_pieces(std::size_t size, const F& f) {
  const auto n = static_cast<std::int64_t>(size);
  double sum = 0.0;
  for (std::int64_t begin = 0; begin < n; begin += kPiece)
    sum += static_cast<double>(
        lane_sum<float>(std::min(kPiece, n - begin), [&](std::int64_t i) { return f(begin + i); }));
  return sum;
}

float largest(std::span<const float> x) {
  float max = kLowest;
  const auto n = static_cast<std::int64_t>(x.size());
  const float* p = x.data();
#pragma omp simd reduction(max : max)
  for (std::int64_t i = 0; i < n; ++i) max = p[i] > max ? p[i] : max;
  return max;
}

}  // namespace

Softmax softmax_of(std::span<const float> x, double temperature) {
  Softmax s;
  s.max = largest(x);
  s.scale = static_cast<float>(1.0 / temperature);
  s.sum = sum_in_pieces(
      x.size(), [&](std::int64_t i) { return fast_exp((x[static_cast<std::size_t>(i)] - s.max) * s.scale); });
  s.inverse_sum = static_cast<float>(1.0 / s.sum);
  return s;
}

// Each of the two sums is rounded, which is too much where their difference is small: one step of Newton's
// method towards Σ q = Σ p.
double log_sum_ratio(std::span<const float> student, const Softmax& q, std::span<const float> teacher,
                     const Softmax& p) {
  const float *s = student.data(), *t = teacher.data();
  const double rounded = q.log_sum() - p.log_sum();
  const LogRatio log_ratio(q.scale, rounded);
  return rounded + std::log1p(sum_in_pieces(student.size(), [&](std::int64_t i) {
           return probability_gain(p.at(t[i]), q.at(s[i]), log_ratio.at(s[i], t[i]));
         }));
}

std::int64_t first_at(std::span<const float> x, float value) {
  return std::find(x.begin(), x.end(), value) - x.begin();
}

TokenDistance distance_of(const Divergences& d, double student_loss, const ops::DistillLoss& a) {
  TokenDistance out;
  out.kl = d.kl;
  out.reverse_kl = d.reverse_kl;
  out.jsd = d.jsd;
  out.student_loss = student_loss;
  const double divergence = a.kl * d.kl + a.reverse_kl * d.reverse_kl + a.jsd * d.jsd;
  out.loss = a.temperature * a.temperature * divergence + a.sft * student_loss;
  return out;
}

namespace {

/// A token's rows of logits and their distributions at the temperature.
struct Rows {
  const float *student, *teacher;
  std::size_t size;
  Softmax q, p;
  double sum_ratio;  // log_sum_ratio
  LogRatio log_ratio;

  Rows(std::span<const float> s, std::span<const float> t, double temperature)
      : student(s.data()),
        teacher(t.data()),
        size(s.size()),
        q(softmax_of(s, temperature)),
        p(softmax_of(t, temperature)),
        sum_ratio(log_sum_ratio(s, q, t, p)),
        log_ratio(q.scale, sum_ratio) {}
  float q_at(std::int64_t i) const { return q.at(student[i]); }
  float p_at(std::int64_t i) const { return p.at(teacher[i]); }
  float log_ratio_at(std::int64_t i) const { return log_ratio.at(student[i], teacher[i]); }
};

double sum_kl(const Rows& r) {
  return sum_in_pieces(r.size,
                       [&](std::int64_t i) { return kl_term(r.p_at(i), r.q_at(i), r.log_ratio_at(i)); });
}

Divergences diverge(const Rows& r, const ops::DistillLoss& a) {
  const auto sum = [&](const auto& term) {
    return sum_in_pieces(r.size,
                         [&](std::int64_t i) { return term(r.p_at(i), r.q_at(i), r.log_ratio_at(i)); });
  };
  Divergences d;
  d.kl = sum_kl(r);
  if (a.reverse_kl > 0) d.reverse_kl = sum([](float p, float q, float x) { return kl_term(q, p, -x); });
  if (a.jsd > 0) {
    d.jsd = sum([](float p, float q, float x) { return jsd_term(p, q, x); });
    d.jsd_student = sum([](float, float q, float x) { return -0.5F * q * log_mean_ratio(-x); });
  }
  return d;
}

/// Over the student's row.
void differentiate(std::span<float> student, const Rows& r, const Softmax& plain, const Divergences& d,
                   std::int32_t target, const ops::DistillLoss& a, float dloss) {
  const auto n = static_cast<std::int64_t>(r.size);
  float* s = student.data();
  const float scale = static_cast<float>(a.temperature) * dloss;
  const float kl = static_cast<float>(a.kl) * scale, sft = static_cast<float>(a.sft) * dloss;
  const auto of_kl = [&](std::int64_t i) {
    return kl * probability_gain(r.p_at(i), r.q_at(i), r.log_ratio_at(i));
  };
  if (a.reverse_kl > 0 || a.jsd > 0) {
    for (std::int64_t i = 0; i < n; ++i)
      s[i] = scale * divergence_slope(r.p_at(i), r.q_at(i), r.log_ratio_at(i), d, a) + sft * plain.at(s[i]);
  } else if (a.sft > 0) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) s[i] = of_kl(i) + sft * plain.at(s[i]);
  } else {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) s[i] = of_kl(i);
  }
  s[target] -= sft;
}

}  // namespace

TokenDistance compare_logits(std::span<float> student, std::span<const float> teacher, std::int32_t target,
                             const ops::DistillLoss& a, GradientRequest request) {
  const auto at = static_cast<std::size_t>(target);
  const Rows r(student, teacher, a.temperature);
  const bool plain_is_q = a.temperature == 1.0;
  const Softmax plain = plain_is_q ? r.q : softmax_of(student, 1.0);
  const Softmax plain_teacher = plain_is_q ? r.p : softmax_of(teacher, 1.0);
  const Divergences d = diverge(r, a);
  TokenDistance out = distance_of(d, -plain.log_at(student[at]), a);
  out.teacher_loss = -plain_teacher.log_at(teacher[at]);
  out.agreement = first_at(student, r.q.max) == first_at(teacher, r.p.max) ? 1.0 : 0.0;
  out.correct = student[at] >= r.q.max ? 1.0 : 0.0;
  if (request.gradient) differentiate(student, r, plain, d, target, a, request.dloss);
  return out;
}

PartSays compare_part(std::span<const float> student, std::span<const float> teacher, std::int64_t target,
                      std::int64_t first, const ops::DistillLoss& a) {
  const Rows r(student, teacher, a.temperature);
  const Divergences d = diverge(r, {.reverse_kl = a.reverse_kl});
  const bool plain_is_q = a.temperature == 1.0;
  const auto at_target = [&](std::span<const float> row) {
    return target < 0 ? 0.0F : row[static_cast<std::size_t>(target)];
  };
  const auto best = [&](std::span<const float> row, float max) {
    return static_cast<float>(first + first_at(row, max));
  };
  const auto f = [](double x) { return static_cast<float>(x); };
  return {{f(r.sum_ratio), f(d.kl), f(d.reverse_kl),
           f((plain_is_q ? r.q : softmax_of(student, 1.0)).log_sum()), at_target(student)},
          {f(r.p.log_sum()), f((plain_is_q ? r.p : softmax_of(teacher, 1.0)).log_sum()), at_target(teacher),
           r.q.max, best(student, r.q.max), r.p.max, best(teacher, r.p.max)}};
}

void differentiate_part(std::span<float> student, std::span<const float> teacher, std::int64_t target,
                        std::span<const float> dsums, const ops::DistillLoss& a) {
  const auto of = [&](ops::DistillSum column) { return dsums[static_cast<std::size_t>(column)]; };
  const Rows r(student, teacher, a.temperature);
  const Softmax plain = a.temperature == 1.0 ? r.q : softmax_of(student, 1.0);
  const auto reverse_kl = static_cast<float>(diverge(r, {.reverse_kl = a.reverse_kl}).reverse_kl);
  const float scale = static_cast<float>(1.0 / a.temperature),
              of_ratio = of(ops::DistillSum::log_ratio) * scale, of_kl = of(ops::DistillSum::kl) * scale,
              of_reverse = a.reverse_kl > 0 ? of(ops::DistillSum::reverse_kl) * scale : 0.0F,
              of_lse = of(ops::DistillSum::lse);
  float* s = student.data();
#pragma omp simd
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(r.size); ++i) {
    const float q = r.q_at(i), x = r.log_ratio_at(i);
    s[i] = q * (of_ratio + of_reverse * (x - reverse_kl)) + of_kl * probability_gain(r.p_at(i), q, x) +
           of_lse * plain.at(s[i]);
  }
  if (target >= 0) s[target] += of(ops::DistillSum::target);
}

double kl_divergence(std::span<const float> student, std::span<const float> teacher) {
  return sum_kl(Rows(student, teacher, 1.0));
}

void kl_gradient(std::span<const float> student, std::span<const float> teacher, float scale,
                 std::span<float> gradient) {
  const Rows r(student, teacher, 1.0);
  const auto n = static_cast<std::int64_t>(r.size);
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i)
    gradient[static_cast<std::size_t>(i)] = scale * probability_gain(r.p_at(i), r.q_at(i), r.log_ratio_at(i));
}

double log_probability(std::span<const float> logits, std::int32_t token) {
  return softmax_of(logits, 1.0).log_at(logits[static_cast<std::size_t>(token)]);
}

}  // namespace farskip::cpu
