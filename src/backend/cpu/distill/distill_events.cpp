// SPDX-License-Identifier: Apache-2.0
// Distributions over events: the largest logits of the teacher one by one, and the rest together.
#include <algorithm>
#include <cmath>
#include <vector>

#include "backend/cpu/distill/distill_softmax.h"

namespace farskip::cpu {
namespace {

// In place of infinity, where one of two models gives an event no mass at all.
constexpr double kLargestLogRatio = 1e4;

/// One model's distribution over the logits that were kept and, as the last event, the rest.
struct Events {
  std::vector<float> kept;        // logits
  std::span<const float> others;  // the row, with kLowest in the places of those
  Softmax rest;                   // over `others`
  double log_total = 0.0;         // log Σ exp(logit / temperature) over all
  std::vector<double> log_probs;  // of the kept ones, and of the rest where anything is left
};

/// Leaves kLowest in the row at the indices.
Events measure_events(std::span<float> logits, std::span<const std::int32_t> indices, double temperature) {
  Events e;
  std::vector<double>& masses = e.log_probs;
  for (const std::int32_t i : indices) {
    float& logit = logits[static_cast<std::size_t>(i)];
    e.kept.push_back(logit);
    masses.push_back(static_cast<double>(logit) / temperature);
    logit = kLowest;
  }
  e.others = logits;
  if (indices.size() < logits.size()) {
    e.rest = softmax_of(logits, temperature);
    masses.push_back(e.rest.log_sum());
  }
  const double top = *std::max_element(masses.begin(), masses.end());
  double total = 0.0;
  for (const double mass : masses) total += std::exp(mass - top);
  e.log_total = top + std::log(total);
  for (double& mass : masses) mass -= e.log_total;
  return e;
}

/// The ids of the largest logits, descending, ties to the lower id.
void find_largest(std::span<const float> logits, std::span<std::int32_t> indices) {
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
}

/// An event's probability of the teacher and of the student, and log(q/p).
struct EventPair {
  double p, q, log_ratio;
};

/// From log-probabilities whose sums are 1 up to rounding, and their differences: one step of Newton's method
/// towards Σ q = Σ p.
std::vector<EventPair> balance(std::span<const double> log_p, std::span<const double> log_q,
                               std::span<const double> log_ratios) {
  std::vector<EventPair> events;
  double gain = 0.0;
  for (std::size_t b = 0; b < log_p.size(); ++b) {
    const double x = std::clamp(log_ratios[b], -kLargestLogRatio, kLargestLogRatio);
    events.push_back({std::exp(log_p[b]), std::exp(log_q[b]), x});
    gain += probability_gain(events[b].p, events[b].q, x);
  }
  for (EventPair& e : events) e.log_ratio -= std::log1p(gain);
  return events;
}

/// From the logits of both.
std::vector<EventPair> pair_logits(const Events& student, const Events& teacher, double temperature) {
  std::vector<double> log_ratios;
  for (std::size_t b = 0; b < student.kept.size(); ++b)
    log_ratios.push_back((static_cast<double>(student.kept[b]) - static_cast<double>(teacher.kept[b])) /
                         temperature);
  if (student.log_probs.size() > student.kept.size())
    log_ratios.push_back(log_sum_ratio(student.others, student.rest, teacher.others, teacher.rest));
  for (double& x : log_ratios) x -= student.log_total - teacher.log_total;
  return balance(teacher.log_probs, student.log_probs, log_ratios);
}

/// From what was kept of the teacher. Rounded log-probabilities may add up to another mass than 1.
std::vector<EventPair> pair_kept(const Events& student, const KeptTeacher& teacher) {
  std::vector<double> log_p(teacher.log_probs.begin(), teacher.log_probs.end());
  log_p.push_back(static_cast<double>(teacher.log_tail));
  log_p.resize(student.log_probs.size());
  double total = 0.0;
  for (const double x : log_p) total += std::exp(x);
  std::vector<double> log_ratios;
  for (std::size_t b = 0; b < log_p.size(); ++b) {
    log_p[b] -= std::log(total);
    log_ratios.push_back(student.log_probs[b] - log_p[b]);
  }
  return balance(log_p, student.log_probs, log_ratios);
}

Divergences diverge(const std::vector<EventPair>& events, const ops::DistillLoss& a) {
  Divergences d;
  for (const auto& [p, q, x] : events) d.add(p, q, x, a);
  return d;
}

void differentiate(std::span<float> row, std::span<const std::int32_t> indices, const Events& student,
                   const std::vector<EventPair>& events, const Softmax& plain, const Divergences& d,
                   const ops::DistillLoss& a, float dloss) {
  const double scale = a.temperature * static_cast<double>(dloss);
  const float sft = static_cast<float>(a.sft) * dloss;
  const std::size_t k = indices.size();
  const auto slope = [&](const EventPair& e) {
    return static_cast<float>(scale * divergence_slope(e.p, e.q, e.log_ratio, d, a));
  };
  if (events.size() > k) {  // dealt out to the tokens of the rest in the ratio of their own probabilities
    const float rest = slope(events[k]);
    const auto n = static_cast<std::int64_t>(row.size());
    float* s = row.data();
#pragma omp simd
    for (std::int64_t i = 0; i < n; ++i) s[i] = rest * student.rest.at(s[i]) + sft * plain.at(s[i]);
  }
  for (std::size_t b = 0; b < k; ++b)
    row[static_cast<std::size_t>(indices[b])] = slope(events[b]) + sft * plain.at(student.kept[b]);
}

/// What both comparisons know of the student before its row is taken apart.
struct Plain {
  Softmax softmax;
  double loss, correct;
  std::int64_t best;

  Plain(std::span<const float> student, std::int32_t target)
      : softmax(softmax_of(student, 1.0)),
        loss(-softmax.log_at(student[static_cast<std::size_t>(target)])),
        correct(student[static_cast<std::size_t>(target)] >= softmax.max ? 1.0 : 0.0),
        best(first_at(student, softmax.max)) {}
};

TokenDistance finish(std::span<float> row, std::span<const std::int32_t> indices, const Events& student,
                     const std::vector<EventPair>& events, const Plain& plain, double teacher_loss,
                     std::int32_t target, const ops::DistillLoss& a, GradientRequest request) {
  const Divergences d = diverge(events, a);
  TokenDistance out = distance_of(d, plain.loss, a);
  out.teacher_loss = teacher_loss;
  out.agreement = plain.best == indices[0] ? 1.0 : 0.0;
  out.correct = plain.correct;
  if (!request.gradient) return out;
  differentiate(row, indices, student, events, plain.softmax, d, a, request.dloss);
  row[static_cast<std::size_t>(target)] -= static_cast<float>(a.sft) * request.dloss;
  return out;
}

}  // namespace

void find_events(std::span<float> logits, double temperature, std::span<std::int32_t> indices,
                 std::span<float> log_probs, float& log_tail) {
  find_largest(logits, indices);
  const Events e = measure_events(logits, indices, temperature);
  std::transform(e.log_probs.begin(), e.log_probs.begin() + static_cast<std::ptrdiff_t>(indices.size()),
                 log_probs.begin(), [](double x) { return static_cast<float>(x); });
  log_tail = e.log_probs.size() > indices.size() ? static_cast<float>(e.log_probs.back()) : kLowest;
}

TokenDistance compare_events(std::span<float> student, std::span<float> teacher, std::int32_t target,
                             const ops::DistillLoss& a, GradientRequest request) {
  const Plain plain(student, target);
  const double teacher_loss = -log_probability(teacher, target);
  std::vector<std::int32_t> indices(static_cast<std::size_t>(a.top_k));
  find_largest(teacher, indices);
  const Events of_teacher = measure_events(teacher, indices, a.temperature);
  const Events of_student = measure_events(student, indices, a.temperature);
  return finish(student, indices, of_student, pair_logits(of_student, of_teacher, a.temperature), plain,
                teacher_loss, target, a, request);
}

TokenDistance compare_kept(std::span<float> student, const KeptTeacher& teacher, std::int32_t target,
                           const ops::DistillLoss& a, GradientRequest request) {
  const Plain plain(student, target);
  const Events of_student = measure_events(student, teacher.indices, a.temperature);
  return finish(student, teacher.indices, of_student, pair_kept(of_student, teacher), plain,
                -teacher.target_log_prob, target, a, request);
}

}  // namespace farskip::cpu
