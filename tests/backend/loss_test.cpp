// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "farskip/ops/ops.h"
#include "run_kernel.h"
#include "support/catch.h"

using namespace farskip;
using namespace farskip::test;

namespace {

struct Problem {
  std::int64_t tokens, hidden, vocabulary;
  std::vector<std::int32_t> targets;
};

struct SlowLoss {
  double sum = 0;
  std::int32_t correct = 0;
};

SlowLoss slow_loss(const Problem& p, const Doubles& h, const Doubles& w) {
  SlowLoss result;
  for (std::int64_t t = 0; t < p.tokens; ++t) {
    const std::int32_t target = p.targets[static_cast<std::size_t>(t)];
    if (target < 0) continue;
    Doubles logits(static_cast<std::size_t>(p.vocabulary));
    for (std::int64_t v = 0; v < p.vocabulary; ++v)
      for (std::int64_t i = 0; i < p.hidden; ++i)
        logits[static_cast<std::size_t>(v)] +=
            h[static_cast<std::size_t>(t * p.hidden + i)] * w[static_cast<std::size_t>(v * p.hidden + i)];
    const double max = *std::max_element(logits.begin(), logits.end());
    double sum = 0;
    for (const double x : logits) sum += std::exp(x - max);
    result.sum += max + std::log(sum) - logits[static_cast<std::size_t>(target)];
    if (logits[static_cast<std::size_t>(target)] == max) ++result.correct;
  }
  return result;
}

/// Analytic gradient of scale * loss, itself held to finite differences below.
std::pair<Doubles, Doubles> slow_gradients(const Problem& p, const Doubles& h, const Doubles& w,
                                           double scale) {
  Doubles dh(h.size()), dw(w.size());
  for (std::int64_t t = 0; t < p.tokens; ++t) {
    const std::int32_t target = p.targets[static_cast<std::size_t>(t)];
    if (target < 0) continue;
    Doubles logits(static_cast<std::size_t>(p.vocabulary));
    double sum = 0;
    for (std::int64_t v = 0; v < p.vocabulary; ++v) {
      double& logit = logits[static_cast<std::size_t>(v)];
      for (std::int64_t i = 0; i < p.hidden; ++i)
        logit +=
            h[static_cast<std::size_t>(t * p.hidden + i)] * w[static_cast<std::size_t>(v * p.hidden + i)];
      sum += std::exp(logit);
    }
    for (std::int64_t v = 0; v < p.vocabulary; ++v) {
      const double g = scale * (std::exp(logits[static_cast<std::size_t>(v)]) / sum - (v == target ? 1 : 0));
      for (std::int64_t i = 0; i < p.hidden; ++i) {
        const auto at_h = static_cast<std::size_t>(t * p.hidden + i),
                   at_w = static_cast<std::size_t>(v * p.hidden + i);
        dh[at_h] += g * w[at_w];
        dw[at_w] += g * h[at_h];
      }
    }
  }
  return {dh, dw};
}

Problem random_problem(std::int64_t tokens, std::int64_t hidden, std::int64_t vocabulary,
                       std::mt19937& random) {
  Problem p{tokens, hidden, vocabulary, {}};
  std::uniform_int_distribution<std::int32_t> target(-1, static_cast<std::int32_t>(vocabulary) - 1);
  for (std::int64_t t = 0; t < tokens; ++t) p.targets.push_back(t % 5 == 3 ? -1 : target(random));
  return p;
}

void check_loss(std::int64_t tokens, std::int64_t hidden, std::int64_t vocabulary, bool differences) {
  CAPTURE(tokens, hidden, vocabulary);
  std::mt19937 random(5);
  const Problem p = random_problem(tokens, hidden, vocabulary, random);
  const HostTensor h = random_floats({tokens, hidden}, random, 0.5F),
                   w = random_floats({vocabulary, hidden}, random);
  const HostTensor start = random_floats({vocabulary, hidden}, random),
                   targets = integers({tokens}, p.targets);
  const float dloss = 0.37F;
  const TensorType one_float{DType::f32, {1}, {}}, one_integer{DType::i32, {1}, {}};
  const SlowLoss expected = slow_loss(p, doubles(h), doubles(w));
  const auto check_sums = [&](const std::vector<HostTensor>& out) {
    CHECK(out[0].values<float>()[0] == Catch::Approx(expected.sum).epsilon(1e-6));
    CHECK(out[1].values<std::int32_t>()[0] == expected.correct);
  };
  check_sums(run_kernel(
      {"linear_cross_entropy", Attributes::of(NoAttributes{}), {h, w, targets}, {one_float, one_integer}}));

  auto [dh, dw] = slow_gradients(p, doubles(h), doubles(w), static_cast<double>(dloss));
  if (differences) {
    const auto scaled = [&](const Doubles& x, const Doubles& y) {
      return static_cast<double>(dloss) * slow_loss(p, x, y).sum;
    };
    const Doubles dh_slope =
        finite_differences([&](const Doubles& x) { return scaled(x, doubles(w)); }, doubles(h));
    const Doubles dw_slope =
        finite_differences([&](const Doubles& x) { return scaled(doubles(h), x); }, doubles(w));
    for (std::size_t i = 0; i < dh.size(); ++i) REQUIRE(std::abs(dh[i] - dh_slope[i]) < 1e-6);
    for (std::size_t i = 0; i < dw.size(); ++i) REQUIRE(std::abs(dw[i] - dw_slope[i]) < 1e-6);
  }
  KernelRun run{"linear_cross_entropy_grad",
                Attributes::of(NoAttributes{}),
                {floats({1}, {dloss}), h, w, targets},
                {one_float, one_integer, {DType::f32, h.shape(), {}}, {DType::f32, w.shape(), {}}}};
  auto out = run_kernel(run);
  check_sums(out);
  CHECK(worst_error(out[2], dh) < 2e-5);
  CHECK(worst_error(out[3], dw) < 2e-5);
  for (std::int64_t t = 0; t < tokens; ++t)
    if (p.targets[static_cast<std::size_t>(t)] < 0)
      CHECK(out[2].values<float>()[static_cast<std::size_t>(t * hidden)] == 0.0F);
  for (std::size_t i = 0; i < dw.size(); ++i) dw[i] += static_cast<double>(start.values<float>()[i]);
  run.inputs.push_back(start);
  CHECK(worst_error(run_kernel(run)[3], dw) < 2e-5);
  run.in_place = {{3, 4}};
  CHECK(worst_error(run_kernel(run)[3], dw) < 2e-5);
}

}  // namespace

TEST_CASE("linear_cross_entropy and its gradient agree with a loop in double and finite differences") {
  check_loss(7, 5, 11, true);
  check_loss(1, 3, 2, true);
  check_loss(4, 9, 37, true);
}

TEST_CASE("linear_cross_entropy over several token blocks and vocabulary chunks") {
  check_loss(300, 17, 9001, false);   // chunks of the forward
  check_loss(1100, 9, 67, false);     // blocks of the gradient, by their largest size
  check_loss(130, 4, 270001, false);  // and by memory
}

TEST_CASE("linear_cross_entropy without counted tokens, and without tokens") {
  std::mt19937 random(1);
  for (const std::int64_t tokens : {0, 3}) {
    const HostTensor h = random_floats({tokens, 4}, random), w = random_floats({6, 4}, random);
    const HostTensor targets =
        integers({tokens}, std::vector<std::int32_t>(static_cast<std::size_t>(tokens), -1));
    const TensorType one_float{DType::f32, {1}, {}}, one_integer{DType::i32, {1}, {}};
    const auto out =
        run_kernel({"linear_cross_entropy_grad",
                    Attributes::of(NoAttributes{}),
                    {floats({1}, {1.0F}), h, w, targets},
                    {one_float, one_integer, {DType::f32, h.shape(), {}}, {DType::f32, w.shape(), {}}}});
    CHECK(out[0].values<float>()[0] == 0.0F);
    CHECK(out[1].values<std::int32_t>()[0] == 0);
    for (const float x : out[2].values<float>()) CHECK(x == 0.0F);
    for (const float x : out[3].values<float>()) CHECK(x == 0.0F);
    const auto sums = run_kernel(
        {"linear_cross_entropy", Attributes::of(NoAttributes{}), {h, w, targets}, {one_float, one_integer}});
    CHECK(sums[0].values<float>()[0] == 0.0F);
  }
}

TEST_CASE("linear_cross_entropy stays finite for logits beyond the range of exp, and keeps NaN") {
  const auto loss = [](float logit) {
    const TensorType one_float{DType::f32, {1}, {}}, one_integer{DType::i32, {1}, {}};
    return run_kernel({"linear_cross_entropy",
                       Attributes::of(NoAttributes{}),
                       {floats({1, 1}, {logit}), floats({3, 1}, {1.0F, 0.5F, -1.0F}), integers({1}, {1})},
                       {one_float, one_integer}})[0]
        .values<float>()[0];
  };
  CHECK(loss(2000.0F) == Catch::Approx(1000.0));
  CHECK(loss(-2000.0F) == Catch::Approx(3000.0));
  CHECK(std::isnan(loss(std::nanf(""))));
}

TEST_CASE("linear_cross_entropy refuses a target outside the vocabulary") {
  const TensorType one_float{DType::f32, {1}, {}}, one_integer{DType::i32, {1}, {}};
  std::mt19937 random(1);
  CHECK_THROWS_WITH(
      run_kernel({"linear_cross_entropy",
                  Attributes::of(NoAttributes{}),
                  {random_floats({2, 4}, random), random_floats({3, 4}, random), integers({2}, {0, 3})},
                  {one_float, one_integer}}),
      ContainsSubstring("target 3"));
}
