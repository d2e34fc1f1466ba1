// SPDX-License-Identifier: Apache-2.0
#include "same_training.h"

#include <cmath>

#include "support/catch.h"

namespace farskip::test {
namespace {

double largest_element(const HostTensor& tensor) {
  double largest = 1e-30;
  for (const float x : tensor.values<float>()) largest = std::max(largest, std::abs(static_cast<double>(x)));
  return largest;
}

/// Largest |a - b| over the tensors; not finite counts as far off.
double largest_difference(const HostTensor& a, const HostTensor& b) {
  double largest = 0;
  for (std::size_t i = 0; i < b.values<float>().size(); ++i) {
    const double difference =
        static_cast<double>(a.values<float>()[i]) - static_cast<double>(b.values<float>()[i]);
    largest = std::max(largest, std::isfinite(difference) ? std::abs(difference) : 1e30);
  }
  return largest;
}
double largest_difference(const TensorMap& a, const TensorMap& b) {
  double largest = 0;
  for (const auto& [name, tensor] : b) largest = std::max(largest, largest_difference(a.at(name), tensor));
  return largest;
}

/// Relative to the largest element of the tensor, or 1% of the largest of all (a gradient that is zero but
/// for rounding is not compared with itself).
double relative_difference(const TensorMap& a, const TensorMap& b) {
  double largest = 0, worst = 0;
  for (const auto& [name, tensor] : b) largest = std::max(largest, largest_element(tensor));
  for (const auto& [name, tensor] : b)
    worst = std::max(
        worst, largest_difference(a.at(name), tensor) / std::max(largest_element(tensor), 0.01 * largest));
  return worst;
}

/// Largest |a - b| of a weight in units of what rounding may do to it. Adam moves a weight by rate * m /
/// sqrt(v) in each step, so an error e of its gradient moves it by up to 2 * rate * e / sqrt(v), and by 2 *
/// rate at most: a weight whose gradient is small beside those of its tensor, which are summed with the same
/// roundings, is known the least. e is 1.5e-5 of the tensor's largest gradient (or of 1% of the largest of
/// all), as sums of these sizes give. Not finite counts as far off.
double largest_weight_difference(const Outcome& a, const Outcome& b) {
  const auto steps = static_cast<double>(b.steps.size());
  const double bias = 1 - std::pow(OptimizerConfig().beta2, steps);
  double largest = 0, worst = 0;
  for (const auto& [name, squares] : b.second) largest = std::max(largest, largest_element(squares));
  for (const auto& [name, weights] : b.weights) {
    if (!b.second.contains(name)) continue;
    const std::span<const float> squares = b.second.at(name).values<float>();
    const double error =
        1.5e-5 * std::sqrt(std::max(largest_element(b.second.at(name)), 1e-4 * largest) / bias);
    for (std::size_t i = 0; i < weights.values<float>().size(); ++i) {
      const double want = weights.values<float>()[i];
      const double size = std::sqrt(squares[i] / bias) + kAdamEps;
      const double allowed =
          steps * kLearningRate * 2 * std::min(1.0, error / size) + std::ldexp(std::abs(want), -22);
      const double difference = std::abs(a.weights.at(name).values<float>()[i] - want);
      worst = std::max(worst, std::isfinite(difference) ? difference / allowed : 1e30);
    }
  }
  return worst;
}

/// The same of what Muon moves, by an orthogonal matrix at its rate and scale. Near 0 five steps of
/// Newton-Schulz stretch a singular value, and an error in it, by 3.4445^5, at most 490 times; 1e-6 of the
/// gradient's norm.
double largest_muon_difference(const Outcome& a, const Outcome& b) {
  double worst = 0;
  for (const auto& [name, weights] : b.weights) {
    if (b.second.contains(name)) continue;
    const std::vector<std::int64_t>& dims = weights.shape().dims();
    const auto most = static_cast<double>(*std::max_element(dims.begin(), dims.end()));
    const double allowed =
        static_cast<double>(b.steps.size()) * kLearningRate * 0.2 * std::sqrt(most) * 490 * 1e-6;
    worst = std::max(worst, largest_difference(a.weights.at(name), weights) / allowed);
  }
  return worst;
}

}  // namespace

void check_same_training(const Outcome& got, const Outcome& want) {
  REQUIRE(got.steps.size() == want.steps.size());
  for (std::size_t i = 0; i < want.steps.size(); ++i) {
    INFO("step " << i + 1);
    CHECK(got.steps[i].loss == Catch::Approx(want.steps[i].loss).epsilon(1e-5));
    CHECK(got.steps[i].norm == Catch::Approx(want.steps[i].norm).epsilon(1e-5));
    CHECK(got.steps[i].balance == Catch::Approx(want.steps[i].balance).epsilon(1e-5));
    CHECK(got.steps[i].correct == want.steps[i].correct);
    CHECK(got.steps[i].load == want.steps[i].load);
  }
  CHECK(largest_weight_difference(got, want) < 1);
  CHECK(largest_muon_difference(got, want) < 1);
  CHECK(relative_difference(got.first, want.first) < 1e-4);
  CHECK(relative_difference(got.second, want.second) < 1e-4);
}

void check_same_bits(const Outcome& got, const Outcome& want) {
  CHECK(got.steps == want.steps);
  CHECK(largest_difference(got.weights, want.weights) == 0);
  CHECK(largest_difference(got.first, want.first) == 0);
  CHECK(largest_difference(got.second, want.second) == 0);
}

}  // namespace farskip::test
