#include "farskip/backend/cpu/distill_row.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "farskip/backend/cpu/reduce.h"
#include "farskip/backend/cpu/vector_math.h"

namespace farskip::cpu {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();
// Summed in pieces, whose order is fixed, so that 100,000 small terms do not vanish beside the sum.
constexpr std::int64_t kPiece = 4096;
// Bounds a ratio of probabilities whose product with the smaller one is nothing.
constexpr double kLargestLogRatio = 80.0;

template <class F>
double sum_in_pieces(std::int64_t n, const F& f) {
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

/// probability_i = exp((x_i - max) scale - log_sum).
struct Softmax {
  float max = kLowest, scale = 1.0F, log_sum = 0.0F, inverse_sum = 0.0F;
  float log_at(float x) const { return (x - max) * scale - log_sum; }
  float at(float x) const { return fast_exp((x - max) * scale) * inverse_sum; }
};

Softmax softmax_of(std::span<const float> x, double temperature) {
  Softmax s;
  s.max = largest(x);
  s.scale = static_cast<float>(1.0 / temperature);
  const double sum = sum_in_pieces(static_cast<std::int64_t>(x.size()), [&](std::int64_t i) {
    return fast_exp((x[static_cast<std::size_t>(i)] - s.max) * s.scale);
  });
  s.log_sum = static_cast<float>(std::log(sum));
  s.inverse_sum = static_cast<float>(1.0 / sum);
  return s;
}

std::int64_t first_at(std::span<const float> x, float value) {
  return std::find(x.begin(), x.end(), value) - x.begin();
}

/// log(m / q) where log(p / q) = x and m = (p + q) / 2; exactly 0 at 0.
template <class T>
T log_mean_ratio(T x) {
  return std::max(x, T{0}) + std::log((T{1} + std::exp(-std::abs(x))) * T{0.5});
}

double weighted(const TokenDistance& d, const ops::DistillLoss& a) {
  const double divergence = a.kl * d.kl + a.reverse_kl * d.reverse_kl + a.jsd * d.jsd;
  return a.temperature * a.temperature * divergence + a.sft * d.student_loss;
}

/// Σ q/2 log(q/m) is also what the gradient of the Jensen-Shannon divergence subtracts from each term.
struct Divergences {
  double kl = 0.0, reverse_kl = 0.0, jsd = 0.0, jsd_student = 0.0;
};

Divergences diverge(std::span<const float> student, const Softmax& q, std::span<const float> teacher,
                    const Softmax& p, const ops::DistillLoss& a) {
  const auto n = static_cast<std::int64_t>(student.size());
  const float *s = student.data(), *t = teacher.data();
  const auto log_ratio = [&](std::int64_t i) { return p.log_at(t[i]) - q.log_at(s[i]); };  // log(p/q)
  Divergences d;
  d.kl = sum_in_pieces(n, [&](std::int64_t i) { return p.at(t[i]) * log_ratio(i); });
  if (a.reverse_kl > 0)
    d.reverse_kl = sum_in_pieces(n, [&](std::int64_t i) { return q.at(s[i]) * -log_ratio(i); });
  if (a.jsd > 0) {
    d.jsd_student =
        sum_in_pieces(n, [&](std::int64_t i) { return q.at(s[i]) * -0.5F * log_mean_ratio(log_ratio(i)); });
    d.jsd = d.jsd_student + sum_in_pieces(n, [&](std::int64_t i) {
              return p.at(t[i]) * -0.5F * log_mean_ratio(-log_ratio(i));
            });
  }
  return d;
}

void differentiate_logits(std::span<float> student, const Softmax& q, const Softmax& plain,
                          std::span<const float> teacher, const Softmax& p, const Divergences& d,
                          std::int32_t target, const ops::DistillLoss& a, float dloss) {
  const auto n = static_cast<std::int64_t>(student.size());
  float* s = student.data();
  const float* t = teacher.data();
  const auto factor = [&](double weight) { return static_cast<float>(weight * a.temperature) * dloss; };
  const float kl = factor(a.kl), reverse = factor(a.reverse_kl), jsd = factor(a.jsd);
  const float sft = static_cast<float>(a.sft) * dloss;
  if (a.reverse_kl > 0 || a.jsd > 0) {
    const auto mean = static_cast<float>(d.reverse_kl), mean_jsd = static_cast<float>(d.jsd_student);
    for (std::int64_t i = 0; i < n; ++i) {
      const float log_ratio = p.log_at(t[i]) - q.log_at(s[i]), qi = q.at(s[i]);
      float g = kl * (qi - p.at(t[i])) + sft * plain.at(s[i]);
      if (a.reverse_kl > 0) g += reverse * qi * (-log_ratio - mean);
      if (a.jsd > 0) g += jsd * qi * (-0.5F * log_mean_ratio(log_ratio) - mean_jsd);
      s[i] = g;
    }
  } else if (a.sft > 0) {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) s[i] = kl * (q.at(s[i]) - p.at(t[i])) + sft * plain.at(s[i]);
  } else {
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) s[i] = kl * (q.at(s[i]) - p.at(t[i]));
  }
  s[target] -= sft;
}

}  // namespace

TokenDistance compare_logits(std::span<float> student, std::span<const float> teacher, std::int32_t target,
                             const ops::DistillLoss& a, GradientRequest request) {
  const auto at = static_cast<std::size_t>(target);
  const Softmax q = softmax_of(student, a.temperature), p = softmax_of(teacher, a.temperature);
  const bool plain_is_q = a.temperature == 1.0;
  const Softmax plain = plain_is_q ? q : softmax_of(student, 1.0);
  const Softmax plain_teacher = plain_is_q ? p : softmax_of(teacher, 1.0);
  const Divergences d = diverge(student, q, teacher, p, a);
  TokenDistance out;
  out.kl = d.kl;
  out.reverse_kl = d.reverse_kl;
  out.jsd = d.jsd;
  out.student_loss = -static_cast<double>(plain.log_at(student[at]));
  out.teacher_loss = -static_cast<double>(plain_teacher.log_at(teacher[at]));
  out.agreement = first_at(student, q.max) == first_at(teacher, p.max) ? 1.0 : 0.0;
  out.correct = student[at] >= q.max ? 1.0 : 0.0;
  out.loss = weighted(out, a);
  if (request.gradient) differentiate_logits(student, q, plain, teacher, p, d, target, a, request.dloss);
  return out;
}

// ---- events: the largest logits of the teacher, and the rest together ----------------------------------

namespace {

/// A distribution over events, in logarithms, and what the rest was made of.
struct Events {
  std::vector<float> kept;  // logits at the indices
  float rest_max = kLowest;
  double rest_sum = 0.0;
};

/// log_probs[K + 1]. Leaves kLowest at the indices: restore() puts the logits back.
Events measure_events(std::span<float> logits, std::span<const std::int32_t> indices, double temperature,
                      std::span<float> log_probs) {
  Events e;
  for (const std::int32_t i : indices) {
    e.kept.push_back(logits[static_cast<std::size_t>(i)]);
    logits[static_cast<std::size_t>(i)] = kLowest;
  }
  const bool has_rest = indices.size() < logits.size();
  const double scale = 1.0 / temperature;
  if (has_rest) {
    e.rest_max = largest(logits);
    const auto s = static_cast<float>(scale);
    e.rest_sum = sum_in_pieces(static_cast<std::int64_t>(logits.size()), [&](std::int64_t i) {
      return fast_exp((logits[static_cast<std::size_t>(i)] - e.rest_max) * s);
    });
  }
  double top = has_rest ? static_cast<double>(e.rest_max) * scale : -std::numeric_limits<double>::infinity();
  for (const float x : e.kept) top = std::max(top, static_cast<double>(x) * scale);
  double total = has_rest ? std::exp(static_cast<double>(e.rest_max) * scale - top) * e.rest_sum : 0.0;
  for (const float x : e.kept) total += std::exp(static_cast<double>(x) * scale - top);
  const double log_total = top + std::log(total);
  for (std::size_t k = 0; k < e.kept.size(); ++k)
    log_probs[k] = static_cast<float>(static_cast<double>(e.kept[k]) * scale - log_total);
  log_probs.back() =
      has_rest
          ? static_cast<float>(static_cast<double>(e.rest_max) * scale + std::log(e.rest_sum) - log_total)
          : kLowest;
  return e;
}

void restore(std::span<float> logits, std::span<const std::int32_t> indices, const Events& e) {
  for (std::size_t k = 0; k < indices.size(); ++k) logits[static_cast<std::size_t>(indices[k])] = e.kept[k];
}

Divergences diverge_events(std::span<const float> log_p, std::span<const float> log_q,
                           const ops::DistillLoss& a) {
  Divergences d;
  for (std::size_t b = 0; b < log_p.size(); ++b) {
    if (log_q[b] == kLowest) continue;  // nothing is left as the rest
    const double p = std::exp(static_cast<double>(log_p[b])), q = std::exp(static_cast<double>(log_q[b]));
    const double log_ratio = static_cast<double>(log_p[b]) - static_cast<double>(log_q[b]);
    if (p > 0) d.kl += p * log_ratio;
    if (a.reverse_kl > 0 && q > 0) d.reverse_kl -= q * log_ratio;
    if (a.jsd > 0 && q > 0) d.jsd_student -= 0.5 * q * log_mean_ratio(log_ratio);
    if (a.jsd > 0 && p > 0) d.jsd -= 0.5 * p * log_mean_ratio(-log_ratio);
  }
  d.jsd += d.jsd_student;
  return d;
}

/// Gradient with respect to a logit of event b, over that logit's own probability q_i.
double slope_of_event(double log_ratio, const Divergences& d, const ops::DistillLoss& a) {
  double slope = a.kl * (1.0 - std::exp(std::min(log_ratio, kLargestLogRatio)));
  if (a.reverse_kl > 0) slope += a.reverse_kl * (-log_ratio - d.reverse_kl);
  if (a.jsd > 0) slope += a.jsd * (-0.5 * log_mean_ratio(log_ratio) - d.jsd_student);
  return slope;
}

}  // namespace

void find_events(std::span<float> logits, double temperature, std::span<std::int32_t> indices,
                 std::span<float> log_probs) {
  // The K best so far as a heap whose first is the worst of them.
  const auto better = [&](std::int32_t x, std::int32_t y) {
    const float a = logits[static_cast<std::size_t>(x)], b = logits[static_cast<std::size_t>(y)];
    return a > b || (a == b && x < y);
  };
  const auto k = static_cast<std::int32_t>(indices.size());
  for (std::int32_t i = 0; i < k; ++i) indices[static_cast<std::size_t>(i)] = i;
  std::make_heap(indices.begin(), indices.end(), better);
  for (auto i = k; i < static_cast<std::int32_t>(logits.size()); ++i) {
    if (!better(i, indices.front())) continue;
    std::pop_heap(indices.begin(), indices.end(), better);
    indices.back() = i;
    std::push_heap(indices.begin(), indices.end(), better);
  }
  std::sort(indices.begin(), indices.end(), better);
  restore(logits, indices, measure_events(logits, indices, temperature, log_probs));
}

double log_probability(std::span<const float> logits, std::int32_t token) {
  return static_cast<double>(softmax_of(logits, 1.0).log_at(logits[static_cast<std::size_t>(token)]));
}

TokenDistance compare_events(std::span<float> student, const TeacherEvents& teacher, std::int32_t target,
                             const ops::DistillLoss& a, GradientRequest request) {
  const auto at = static_cast<std::size_t>(target);
  const auto n = static_cast<std::int64_t>(student.size());
  const std::size_t k = teacher.indices.size();
  const Softmax plain = softmax_of(student, 1.0);
  TokenDistance out;
  out.student_loss = -static_cast<double>(plain.log_at(student[at]));
  out.teacher_loss = -teacher.target_log_prob;
  out.agreement = first_at(student, plain.max) == teacher.indices[0] ? 1.0 : 0.0;
  out.correct = student[at] >= plain.max ? 1.0 : 0.0;
  std::vector<float> log_q(k + 1);
  const Events e = measure_events(student, teacher.indices, a.temperature, log_q);
  const Divergences d = diverge_events(teacher.log_probs, log_q, a);
  out.kl = d.kl;
  out.reverse_kl = d.reverse_kl;
  out.jsd = d.jsd;
  out.loss = weighted(out, a);
  if (!request.gradient) {
    restore(student, teacher.indices, e);
    return out;
  }
  const double scale = a.temperature * static_cast<double>(request.dloss);
  const auto log_ratio = [&](std::size_t b) {
    return static_cast<double>(teacher.log_probs[b]) - static_cast<double>(log_q[b]);
  };
  const float sft = static_cast<float>(a.sft) * request.dloss;
  if (static_cast<std::int64_t>(k) < n) {
    const double q_rest = std::exp(static_cast<double>(log_q[k]));
    const auto rest = static_cast<float>(scale * slope_of_event(log_ratio(k), d, a) * q_rest / e.rest_sum);
    const auto inverse = static_cast<float>(1.0 / a.temperature);
    float* s = student.data();
    const float rest_max = e.rest_max;
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i)
      s[i] = rest * fast_exp((s[i] - rest_max) * inverse) + sft * plain.at(s[i]);
  }
  for (std::size_t b = 0; b < k; ++b) {
    const double p = std::exp(static_cast<double>(teacher.log_probs[b]));
    const double q = std::exp(static_cast<double>(log_q[b]));
    ops::DistillLoss others = a;  // q - p rather than q (1 - p/q), whose quotient may overflow
    others.kl = 0.0;
    const double g = a.kl * (q - p) + q * slope_of_event(log_ratio(b), d, others);
    student[static_cast<std::size_t>(teacher.indices[b])] =
        static_cast<float>(scale * g) + sft * plain.at(e.kept[b]);
  }
  student[at] -= sft;
  return out;
}

}  // namespace farskip::cpu
