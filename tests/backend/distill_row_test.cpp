// SPDX-License-Identifier: Apache-2.0
// The losses of distillation on one token, against long double. Where the student is close to its teacher and
// the temperature high, a divergence is the small rest of a sum of much larger terms.
#include "backend/cpu/distill/distill_row.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "support/catch.h"

namespace farskip::cpu {
namespace {

using Exact = std::vector<long double>;

constexpr std::size_t kVocabulary = 1009;
constexpr std::int32_t kTarget = 7;

struct Rows {
  std::vector<float> student, teacher;
};

/// Logits as a model says them, those of the student off by `distance`.
Rows make_rows(double distance) {
  std::mt19937 random(17);
  std::normal_distribution<double> normal;
  Rows rows;
  for (std::size_t i = 0; i < kVocabulary; ++i) {
    const double logit = 3.0 * normal(random);
    rows.teacher.push_back(static_cast<float>(logit));
    rows.student.push_back(static_cast<float>(logit + distance * normal(random)));
  }
  return rows;
}

Exact log_softmax(const std::vector<float>& logits, double temperature) {
  Exact out(logits.begin(), logits.end());
  long double sum = 0;
  for (long double& x : out) sum += std::exp(x /= static_cast<long double>(temperature));
  for (long double& x : out) x -= std::log(sum);
  return out;
}

/// Log-probabilities of the events `kept` and, where anything is left, of the rest.
Exact gather(const Exact& log_probs, const std::vector<std::int32_t>& kept) {
  Exact out;
  long double rest = 0;
  for (std::size_t i = 0; i < log_probs.size(); ++i)
    if (std::find(kept.begin(), kept.end(), static_cast<std::int32_t>(i)) == kept.end())
      rest += std::exp(log_probs[i]);
  for (const std::int32_t i : kept) out.push_back(log_probs[static_cast<std::size_t>(i)]);
  if (kept.size() < log_probs.size()) out.push_back(std::log(rest));
  return out;
}

// Σ p log(p/q), to which Σ q - Σ p = 0 is added term by term: the plain sum would be too inexact in long
// double, too.
long double kl(const Exact& log_p, const Exact& log_q) {
  long double sum = 0;
  for (std::size_t i = 0; i < log_p.size(); ++i) {
    const long double x = log_q[i] - log_p[i];
    sum += std::exp(log_p[i]) * (std::expm1(x) - x);
  }
  return sum;
}

Exact mean_of(const Exact& log_p, const Exact& log_q) {
  Exact m;
  for (std::size_t i = 0; i < log_p.size(); ++i)
    m.push_back(std::log((std::exp(log_p[i]) + std::exp(log_q[i])) / 2));
  return m;
}

/// The divergences, and the derivative of the weighted loss with respect to the logits of events, over their
/// q.
struct Expected {
  long double kl, reverse_kl, jsd;
  Exact slopes, sizes;  // sizes: of the terms that a slope is the sum of, which rounding is relative to

  Expected(const Exact& p, const Exact& q, const ops::DistillLoss& a) {
    const Exact m = mean_of(p, q);
    kl = cpu::kl(p, q);
    reverse_kl = cpu::kl(q, p);
    const long double jsd_student = cpu::kl(q, m) / 2;
    jsd = cpu::kl(p, m) / 2 + jsd_student;
    for (std::size_t i = 0; i < p.size(); ++i) {
      const long double forward = static_cast<long double>(a.kl) * -std::expm1(p[i] - q[i]);
      const long double x = q[i] - p[i], half = (q[i] - m[i]) / 2;
      const auto reverse = static_cast<long double>(a.reverse_kl), mean = static_cast<long double>(a.jsd);
      const auto scale = static_cast<long double>(a.temperature);
      slopes.push_back(scale * (forward + reverse * (x - reverse_kl) + mean * (half - jsd_student)));
      sizes.push_back(scale * (std::abs(forward) + reverse * (std::abs(x) + reverse_kl) +
                               mean * (std::abs(half) + jsd_student)));
    }
  }
};

void check_values(const TokenDistance& d, const Expected& e, const ops::DistillLoss& a, double tolerance) {
  const auto check = [&](double actual, long double expected) {
    CHECK(actual >= 0);
    CHECK(std::abs(actual / static_cast<double>(expected) - 1) <= tolerance);
  };
  check(d.kl, e.kl);
  if (a.reverse_kl > 0) check(d.reverse_kl, e.reverse_kl);
  if (a.jsd > 0) check(d.jsd, e.jsd);
}

/// Largest error of a gradient, relative to the largest element before its terms are added.
double worst_error(const std::vector<float>& gradient, const Exact& expected, const Exact& sizes) {
  long double error = 0;
  for (std::size_t i = 0; i < gradient.size(); ++i)
    error = std::max(error, std::abs(static_cast<long double>(gradient[i]) - expected[i]));
  return static_cast<double>(error / *std::max_element(sizes.begin(), sizes.end()));
}

const std::vector<double> kTemperatures{0.5, 1, 8, 256, 1000}, kDistances{1e-4, 1e-2, 1, 30};

/// Each divergence alone and all of them, at each temperature, for students near and far.
template <class F>
void for_each_case(std::int64_t top_k, const F& f) {
  for (const double distance : kDistances)
    for (const double temperature : kTemperatures)
      for (ops::DistillLoss a : {ops::DistillLoss{},
                                 {.kl = 0, .reverse_kl = 1},
                                 {.kl = 0, .jsd = 1},
                                 {.kl = 0.5, .reverse_kl = 0.3, .jsd = 0.2}}) {
        a.temperature = temperature;
        a.top_k = top_k;
        CAPTURE(distance, temperature, a.kl, a.reverse_kl, a.jsd, top_k);
        f(make_rows(distance), a);
      }
}

TEST_CASE("divergences and gradients are right at temperatures up to 1000, of near and of far students") {
  for_each_case(0, [](Rows rows, const ops::DistillLoss& a) {
    const Exact p = log_softmax(rows.teacher, a.temperature), q = log_softmax(rows.student, a.temperature);
    const Expected expected(p, q, a);
    const TokenDistance d = compare_logits(rows.student, rows.teacher, kTarget, a, {true, 1.0F});
    check_values(d, expected, a, 2e-6);
    Exact gradient, sizes;
    for (std::size_t i = 0; i < q.size(); ++i) {
      gradient.push_back(std::exp(q[i]) * expected.slopes[i]);
      sizes.push_back(std::exp(q[i]) * expected.sizes[i]);
    }
    CHECK(worst_error(rows.student, gradient, sizes) < 5e-6);
  });
}

TEST_CASE("so they are over the largest logits of the teacher") {
  for (const std::int64_t top_k : {std::int64_t{1}, std::int64_t{20}, std::int64_t{kVocabulary}})
    for_each_case(top_k, [&](Rows rows, const ops::DistillLoss& a) {
      std::vector<std::int32_t> kept(kVocabulary);
      std::iota(kept.begin(), kept.end(), 0);
      std::stable_sort(kept.begin(), kept.end(), [&](std::int32_t x, std::int32_t y) {
        return rows.teacher[static_cast<std::size_t>(x)] > rows.teacher[static_cast<std::size_t>(y)];
      });
      kept.resize(static_cast<std::size_t>(top_k));
      const Exact full = log_softmax(rows.student, a.temperature);
      const Expected expected(gather(log_softmax(rows.teacher, a.temperature), kept), gather(full, kept), a);
      const TokenDistance d = compare_events(rows.student, rows.teacher, kTarget, a, {true, 1.0F});
      check_values(d, expected, a, 5e-6);
      Exact gradient, sizes;
      for (std::size_t i = 0; i < full.size(); ++i) {
        const auto at = static_cast<std::size_t>(
            std::find(kept.begin(), kept.end(), static_cast<std::int32_t>(i)) - kept.begin());
        gradient.push_back(std::exp(full[i]) * expected.slopes[at]);
        sizes.push_back(std::exp(full[i]) * expected.sizes[at]);
      }
      CHECK(worst_error(rows.student, gradient, sizes) < 5e-6);
    });
}

TEST_CASE("so is the divergence of routers") {
  for (const double distance : kDistances) {
    CAPTURE(distance);
    const Rows rows = make_rows(distance);
    const Exact p = log_softmax(rows.teacher, 1), q = log_softmax(rows.student, 1);
    const auto expected = static_cast<double>(kl(p, q));
    CHECK(std::abs(kl_divergence(rows.student, rows.teacher) - expected) <= 2e-6 * expected);
    std::vector<float> actual(kVocabulary);
    kl_gradient(rows.student, rows.teacher, 3.0F, actual);
    Exact gradient;
    for (std::size_t i = 0; i < q.size(); ++i) gradient.push_back(3 * (std::exp(q[i]) - std::exp(p[i])));
    CHECK(worst_error(actual, gradient, gradient) < 5e-6);
  }
}

TEST_CASE("a student whose logits are the teacher's, or all shifted alike, has no divergence") {
  for (const double temperature : kTemperatures)
    for (const std::int64_t top_k : {0, 20}) {
      CAPTURE(temperature, top_k);
      const ops::DistillLoss a{
          .kl = 0.5, .reverse_kl = 0.3, .jsd = 0.2, .temperature = temperature, .top_k = top_k};
      Rows rows = make_rows(0);
      const auto compare =
          top_k == 0
              ? [](Rows& r,
                   const ops::DistillLoss&
                       loss) { return compare_logits(r.student, r.teacher, kTarget, loss, {true, 1.0F}); }
              : [](Rows& r, const ops::DistillLoss& loss) {
                  return compare_events(r.student, r.teacher, kTarget, loss, {true, 1.0F});
                };
      CHECK(compare(rows, a).loss == 0.0);
      CHECK(std::all_of(rows.student.begin(), rows.student.end(), [](float g) { return g == 0.0F; }));

      rows = make_rows(0);
      for (float& x : rows.student) x += 64.0F;
      const double loss = compare(rows, a).loss;
      CHECK(loss >= 0.0);
      CHECK(loss < 1e-10 * temperature);
    }
}

// 16-bit levels of what was kept are rounded: Σ p is not 1 then, and Σ p log(p/q) may be below 0.
TEST_CASE("kept log-probabilities whose mass is not 1 are taken for a distribution") {
  const Rows rows = make_rows(1e-3);
  const ops::DistillLoss a{.kl = 1, .reverse_kl = 1, .jsd = 1, .temperature = 100, .top_k = 20};
  std::vector<float> teacher = rows.teacher, log_probs(20);
  std::vector<std::int32_t> indices(20);
  float log_tail = 0;
  find_events(teacher, a.temperature, indices, log_probs, log_tail);
  const auto compare = [&](float shift) {
    std::vector<float> student = rows.student, shifted = log_probs;
    for (float& x : shifted) x += shift;
    return compare_kept(student, {indices, shifted, log_tail + shift, 0.0}, kTarget, a, {true, 1.0F}).loss;
  };
  const double exact = compare(0.0F);
  CHECK(exact > 0);
  CHECK(std::abs(compare(0.01F) - exact) < 0.05 * exact);
  CHECK(std::abs(compare(-0.01F) - exact) < 0.05 * exact);
}

}  // namespace
}  // namespace farskip::cpu
