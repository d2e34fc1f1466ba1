// SPDX-License-Identifier: Apache-2.0
#include "backend/rope_angles.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace farskip {
namespace {

/// Angle per position of each pair: the plain one, the one slowed by `factor`, or a blend of both.
struct Frequencies {
  explicit Frequencies(const ops::RopeTable& a) : attributes(a) {
    if (a.scaling != ops::RopeScaling::yarn) return;
    first_blended = std::max(std::floor(pair_turning(a.beta_fast)), 0.0);
    first_slowed = std::min(std::ceil(pair_turning(a.beta_slow)), static_cast<double>(a.dim - 1));
    if (first_blended == first_slowed) first_slowed += 0.001;  // a step instead of a division by zero
  }

  double operator()(std::int64_t pair) const {
    const ops::RopeTable& a = attributes;
    const double plain = std::pow(a.theta, -static_cast<double>(2 * pair) / static_cast<double>(a.dim));
    if (a.scaling == ops::RopeScaling::none) return plain;
    const double slowed = std::min(std::max(0.0, slowed_share(pair, plain)), 1.0);  // of 0 / 0: nothing
    return plain * (1.0 - slowed) + plain / a.factor * slowed;
  }

  /// How much of a pair is slowed, before it is cut to 0 to 1. YaRN (section 3.2) rounds the bounds of the
  /// blend to whole pairs.
  double slowed_share(std::int64_t pair, double plain) const {
    const ops::RopeTable& a = attributes;
    if (a.scaling == ops::RopeScaling::linear) return 1.0;
    if (a.scaling == ops::RopeScaling::yarn)
      return (static_cast<double>(pair) - first_blended) / (first_slowed - first_blended);
    const double turns = plain * static_cast<double>(a.original_positions) / (2.0 * std::numbers::pi);
    return (a.beta_fast - turns) / (a.beta_fast - a.beta_slow);
  }

  /// The (fractional) pair that turns `rotations` times over the original context.
  double pair_turning(double rotations) const {
    const ops::RopeTable& a = attributes;
    const double wavelength = static_cast<double>(a.original_positions) / rotations;
    return static_cast<double>(a.dim) * std::log(wavelength / (2.0 * std::numbers::pi)) /
           (2.0 * std::log(a.theta));
  }

  const ops::RopeTable& attributes;
  double first_blended = 0, first_slowed = 0;
};

}  // namespace

std::vector<double> rope_angles(const ops::RopeTable& attributes) {
  const Frequencies frequency(attributes);
  std::vector<double> angles;
  for (std::int64_t pair = 0; pair < attributes.dim / 2; ++pair) angles.push_back(frequency(pair));
  return angles;
}

float attention_temperature_at(const ops::AttentionTemperature& a, std::int64_t position) {
  return static_cast<float>(1.0 + a.scale * std::log1p(static_cast<double>((position + 1) / a.floor)));
}

std::vector<float> attention_temperatures(const ops::AttentionTemperature& a) {
  std::vector<float> values;
  for (std::int64_t position = 0; position < a.sequence_length; ++position)
    values.push_back(attention_temperature_at(a, position));
  return values;
}

}  // namespace farskip
