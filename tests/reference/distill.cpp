// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "ops/distill_ops.h"
#include "reference/reference.h"

namespace farskip::reference {
namespace {

using Row = std::vector<double>;

Row logits_of(const double* h, const double* w, std::int64_t hidden, std::int64_t vocab, std::int64_t token) {
  Row out(static_cast<std::size_t>(vocab), 0.0);
  for (std::int64_t v = 0; v < vocab; ++v)
    for (std::int64_t i = 0; i < hidden; ++i)
      out[static_cast<std::size_t>(v)] += h[token * hidden + i] * w[v * hidden + i];
  return out;
}

Row softmax(Row x, double temperature) {
  const double max = *std::max_element(x.begin(), x.end());
  double sum = 0.0;
  for (double& v : x) sum += v = std::exp((v - max) / temperature);
  for (double& v : x) v /= sum;
  return x;
}

std::size_t argmax(const Row& x) {
  return static_cast<std::size_t>(std::max_element(x.begin(), x.end()) - x.begin());
}

/// The ids of the k largest, ties to the lower id.
std::vector<std::size_t> best(const Row& x, std::int64_t k) {
  std::vector<std::size_t> ids(x.size());
  std::iota(ids.begin(), ids.end(), std::size_t{0});
  std::stable_sort(ids.begin(), ids.end(), [&](std::size_t a, std::size_t b) { return x[a] > x[b]; });
  ids.resize(static_cast<std::size_t>(k));
  return ids;
}

/// Probabilities of the events `ids` and of the rest.
Row gather_events(const Row& p, const std::vector<std::size_t>& ids) {
  Row out;
  Row left = p;
  for (const std::size_t i : ids) {
    out.push_back(p[i]);
    left[i] = 0.0;
  }
  if (ids.size() < p.size()) out.push_back(std::accumulate(left.begin(), left.end(), 0.0));
  return out;
}

// Σ p log(p/q), to which Σ q - Σ p = 0 is added term by term: of close distributions the plain sum is inexact
// in f64, too.
double kl(const Row& p, const Row& q) {
  double sum = 0.0;
  for (std::size_t i = 0; i < p.size(); ++i) {
    const double x = std::log(q[i] / p[i]);
    sum += p[i] > 0 ? p[i] * (std::expm1(x) - x) : q[i];
  }
  return sum;
}

/// Adds one token to loss and stats. p, q: at the temperature, over the events.
void add_token(const KernelCall& call, const Row& p, const Row& q, double student_loss, double teacher_loss,
               bool agree, bool correct) {
  const auto& a = call.get<ops::DistillLoss>();
  Row mean(p.size());
  for (std::size_t i = 0; i < p.size(); ++i) mean[i] = 0.5 * (p[i] + q[i]);
  const double forward = kl(p, q), reverse = a.reverse_kl > 0 ? kl(q, p) : 0.0;
  const double jsd = a.jsd > 0 ? 0.5 * (kl(p, mean) + kl(q, mean)) : 0.0;
  call.out<double>(0)[0] +=
      a.temperature * a.temperature * (a.kl * forward + a.reverse_kl * reverse + a.jsd * jsd) +
      a.sft * student_loss;
  const double values[] = {
      forward, reverse, jsd, student_loss, teacher_loss, agree ? 1.0 : 0.0, correct ? 1.0 : 0.0};
  for (std::size_t i = 0; i < ops::kDistillStats.size(); ++i) call.out<double>(1)[i] += values[i];
}

void clear(const KernelCall& call) {
  call.out<double>(0)[0] = 0.0;
  std::fill_n(call.out<double>(1), ops::kDistillStats.size(), 0.0);
}

void run_distill_loss(const KernelCall& call) {
  const auto& a = call.get<ops::DistillLoss>();
  const std::int64_t vocab = call.in_shape(1)[0];
  clear(call);
  for (std::int64_t t = 0; t < call.in_shape(4).num_elements(); ++t) {
    const std::int32_t target = call.in<std::int32_t>(4)[t];
    if (target < 0) continue;
    const auto at = static_cast<std::size_t>(target);
    const Row s = logits_of(call.in<double>(0), call.in<double>(1), call.in_shape(1)[1], vocab, t);
    const Row x = logits_of(call.in<double>(2), call.in<double>(3), call.in_shape(3)[1], vocab, t);
    Row q = softmax(s, a.temperature), p = softmax(x, a.temperature);
    if (a.top_k > 0) {
      const auto ids = best(x, a.top_k);
      q = gather_events(q, ids);
      p = gather_events(p, ids);
    }
    add_token(call, p, q, -std::log(softmax(s, 1.0)[at]), -std::log(softmax(x, 1.0)[at]),
              argmax(s) == argmax(x), s[at] >= *std::max_element(s.begin(), s.end()));
  }
}

void run_cached_distill_loss(const KernelCall& call) {
  const auto& a = call.get<ops::DistillLoss>();
  const std::int64_t vocab = call.in_shape(1)[0];
  clear(call);
  for (std::int64_t t = 0; t < call.in_shape(6).num_elements(); ++t) {
    const std::int32_t target = call.in<std::int32_t>(6)[t];
    if (target < 0) continue;
    const auto at = static_cast<std::size_t>(target);
    const Row s = logits_of(call.in<double>(0), call.in<double>(1), call.in_shape(1)[1], vocab, t);
    std::vector<std::size_t> ids;
    Row p;
    for (std::int64_t k = 0; k < a.top_k; ++k) {
      ids.push_back(static_cast<std::size_t>(call.in<std::int32_t>(2)[t * a.top_k + k]));
      p.push_back(std::exp(call.in<double>(3)[t * a.top_k + k]));
    }
    if (a.top_k < vocab) p.push_back(std::exp(call.in<double>(4)[t]));
    const double mass = std::accumulate(p.begin(), p.end(), 0.0);
    for (double& x : p) x /= mass;
    add_token(call, p, gather_events(softmax(s, a.temperature), ids), -std::log(softmax(s, 1.0)[at]),
              -call.in<double>(5)[t], argmax(s) == ids[0], s[at] >= *std::max_element(s.begin(), s.end()));
  }
}

double log_sum_exp(const Row& x, double temperature) {
  const double max = *std::max_element(x.begin(), x.end());
  double sum = 0.0;
  for (const double v : x) sum += std::exp((v - max) / temperature);
  return max / temperature + std::log(sum);
}

void run_distill_stats(const KernelCall& call) {
  const auto& a = call.get<ops::DistillPart>();
  const Range own = a.part.own(call.in_shape(1)[0]);
  for (std::int64_t t = 0; t < call.in_shape(4).num_elements(); ++t) {
    double *const sums = call.out<double>(0) + 5 * t, *const fixed = call.out<double>(1) + 7 * t;
    std::fill_n(sums, 5, 0.0);
    std::fill_n(fixed, 7, 0.0);
    const std::int32_t target = call.in<std::int32_t>(4)[t];
    if (target < 0) continue;
    const Row s = logits_of(call.in<double>(0), call.in<double>(1), call.in_shape(1)[1], own.count, t);
    const Row x = logits_of(call.in<double>(2), call.in<double>(3), call.in_shape(3)[1], own.count, t);
    const Row q = softmax(s, a.loss.temperature), p = softmax(x, a.loss.temperature);
    const bool here = target >= own.first && target < own.end();
    const auto at = static_cast<std::size_t>(here ? target - own.first : 0);
    const double of_sums[] = {log_sum_exp(s, a.loss.temperature) - log_sum_exp(x, a.loss.temperature),
                              kl(p, q), a.loss.reverse_kl > 0 ? kl(q, p) : 0.0, log_sum_exp(s, 1.0),
                              here ? s[at] : 0.0};
    const double of_fixed[] = {log_sum_exp(x, a.loss.temperature),
                               log_sum_exp(x, 1.0),
                               here ? x[at] : 0.0,
                               s[argmax(s)],
                               static_cast<double>(own.first) + static_cast<double>(argmax(s)),
                               x[argmax(x)],
                               static_cast<double>(own.first) + static_cast<double>(argmax(x))};
    std::copy_n(of_sums, 5, sums);
    std::copy_n(of_fixed, 7, fixed);
  }
}

void run_joint_distill_loss(const KernelCall& call) {
  const auto& a = call.get<ops::JointDistill>();
  const std::int64_t tokens = call.in_shape(2).num_elements();
  const std::int64_t parts = tokens == 0 ? 0 : call.in_shape(0)[0] / tokens;
  clear(call);
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int32_t target = call.in<std::int32_t>(2)[t];
    if (target < 0) continue;
    const auto column = [&](std::size_t input, std::int64_t width, std::int64_t i) {
      Row out;
      for (std::int64_t r = 0; r < parts; ++r)
        out.push_back(call.in<double>(input)[(r * tokens + t) * width + i]);
      return out;
    };
    const Row ratios = column(0, 5, 0), inside = column(0, 5, 1), inside_reverse = column(0, 5, 2),
              teacher = column(1, 7, 0), max = column(1, 7, 3), teacher_max = column(1, 7, 5);
    Row student;
    for (std::size_t r = 0; r < ratios.size(); ++r) student.push_back(teacher[r] + ratios[r]);
    const Row p = softmax(teacher, 1.0), q = softmax(student, 1.0);
    double forward = kl(p, q), reverse = kl(q, p);
    for (std::size_t r = 0; r < p.size(); ++r) {
      forward += p[r] * inside[r];
      reverse += q[r] * inside_reverse[r];
    }
    const auto part = static_cast<std::size_t>(target / a.parts.rows);
    const double chosen = column(0, 5, 4)[part];
    const double values[] = {forward,
                             a.loss.reverse_kl > 0 ? reverse : 0.0,
                             0.0,
                             log_sum_exp(column(0, 5, 3), 1.0) - chosen,
                             log_sum_exp(column(1, 7, 1), 1.0) - column(1, 7, 2)[part],
                             column(1, 7, 4)[argmax(max)] == column(1, 7, 6)[argmax(teacher_max)] ? 1.0 : 0.0,
                             chosen >= *std::max_element(max.begin(), max.end()) ? 1.0 : 0.0};
    call.out<double>(0)[0] +=
        a.loss.temperature * a.loss.temperature * (a.loss.kl * values[0] + a.loss.reverse_kl * values[1]) +
        a.loss.sft * values[3];
    for (std::size_t i = 0; i < ops::kDistillStats.size(); ++i) call.out<double>(1)[i] += values[i];
  }
}

void run_teacher_top_k(const KernelCall& call) {
  const auto& a = call.get<ops::KeepTopK>();
  const std::int64_t vocab = call.in_shape(1)[0];
  for (std::int64_t t = 0; t < call.in_shape(0)[0]; ++t) {
    const Row x = logits_of(call.in<double>(0), call.in<double>(1), call.in_shape(1)[1], vocab, t);
    const auto ids = best(x, a.top_k);
    const Row p = gather_events(softmax(x, a.temperature), ids);
    for (std::size_t k = 0; k < ids.size(); ++k) {
      const auto to = static_cast<std::size_t>(t * a.top_k) + k;
      call.out<std::int32_t>(0)[to] = static_cast<std::int32_t>(ids[k]);
      call.out<double>(1)[to] = std::log(p[k]);
    }
    call.out<double>(2)[t] = std::log(p.back());
    const std::int32_t target = call.in<std::int32_t>(2)[t];
    call.out<double>(3)[t] = target < 0 ? 0.0 : std::log(softmax(x, 1.0)[static_cast<std::size_t>(target)]);
  }
}

Row row_of(const double* x, std::int64_t width, std::int64_t t) {
  return {x + t * width, x + (t + 1) * width};
}

void run_squared_difference(const KernelCall& call) {
  const std::int64_t width = call.in_shape(0)[1];
  double sum = 0.0;
  for (std::int64_t t = 0; t < call.in_shape(0)[0]; ++t)
    for (std::int64_t i = 0; i < width && call.in<std::int32_t>(2)[t] >= 0; ++i)
      sum += std::pow(call.in<double>(0)[t * width + i] - call.in<double>(1)[t * width + i], 2) *
             (call.has(3) ? call.in<double>(3)[t] : 1.0);
  call.out<double>(0)[0] = call.get<ops::Weight>().weight * sum / static_cast<double>(width);
}

void run_relative_weights(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(0)[0], width = call.in_shape(0)[1];
  const std::int64_t length = call.get<ops::Sequences>().sequence_length;
  const auto square = [&](std::int64_t t) {
    const Row y = row_of(call.in<double>(0), width, t);
    return std::inner_product(y.begin(), y.end(), y.begin(), 0.0) / static_cast<double>(width);
  };
  for (std::int64_t t = 0; t < tokens; ++t) {
    const std::int64_t first = t / length * length;
    double others = length == 1 ? square(t) : 0.0;
    for (std::int64_t i = first + 1; i < first + length; ++i)
      others += square(i) / static_cast<double>(length - 1);
    call.out<double>(0)[t] = 2.0 / (square(t) + others) * (call.has(1) ? call.in<double>(1)[t] : 1.0);
  }
}

void run_router_divergence(const KernelCall& call) {
  const std::int64_t width = call.in_shape(0)[1];
  double sum = 0.0;
  for (std::int64_t t = 0; t < call.in_shape(0)[0]; ++t)
    if (call.in<std::int32_t>(2)[t] >= 0)
      sum += kl(softmax(row_of(call.in<double>(1), width, t), 1.0),
                softmax(row_of(call.in<double>(0), width, t), 1.0));
  call.out<double>(0)[0] = call.get<ops::Weight>().weight * sum;
}

void run_count_routing_flips(const KernelCall& call) {
  const std::int64_t top_k = call.in_shape(0)[1];
  std::int32_t flips = 0;
  for (std::int64_t t = 0; t < call.in_shape(0)[0]; ++t) {
    if (call.in<std::int32_t>(2)[t] < 0) continue;
    for (std::int64_t k = 0; k < top_k; ++k) {
      bool also = false;
      for (std::int64_t j = 0; j < top_k; ++j)
        also = also || call.in<std::int32_t>(0)[t * top_k + k] == call.in<std::int32_t>(1)[t * top_k + j];
      if (!also) ++flips;
    }
  }
  call.out<std::int32_t>(0)[0] = flips;
}

}  // namespace

void register_distill(KernelTable& table) {
  add_reference(table, "distill_loss", run_distill_loss);
  add_reference(table, "cached_distill_loss", run_cached_distill_loss);
  add_reference(table, "distill_stats", run_distill_stats);
  add_reference(table, "joint_distill_loss", run_joint_distill_loss);
  add_reference(table, "teacher_top_k", run_teacher_top_k);
  add_reference(table, "squared_difference", run_squared_difference);
  add_reference(table, "relative_weights", run_relative_weights);
  add_reference(table, "router_divergence", run_router_divergence);
  add_reference(table, "count_routing_flips", run_count_routing_flips);
}

}  // namespace farskip::reference
