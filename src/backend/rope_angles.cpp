// SPDX-License-Identifier: Apache-2.0
#include "farskip/backend/rope_angles.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace farskip {
namespace {

/// Angle per position of each pair. YaRN (arXiv 2309.00071, section 3.2): pairs that turn more than
/// beta_fast times over the original context keep their frequency, pairs that turn less than beta_slow
/// times are slowed by `factor`, pairs between are blended linearly. The bounds are whole pairs.
struct Frequencies {
  explicit Frequencies(const ops::RopeTable& a) : attributes(a) {
    if (a.scaling == ops::RopeScaling::none) return;
    first_blended = std::max(std::floor(pair_turning(a.beta_fast)), 0.0);
    first_slowed = std::min(std::ceil(pair_turning(a.beta_slow)), static_cast<double>(a.dim - 1));
    if (first_blended == first_slowed) first_slowed += 0.001;  // a step instead of a division by zero
  }

  double operator()(std::int64_t pair) const {
    const ops::RopeTable& a = attributes;
    const double plain = std::pow(a.theta, -static_cast<double>(2 * pair) / static_cast<double>(a.dim));
    if (a.scaling == ops::RopeScaling::none) return plain;
    const double ramp = (static_cast<double>(pair) - first_blended) / (first_slowed - first_blended);
    const double slowed = std::min(std::max(ramp, 0.0), 1.0);
    return plain * (1.0 - slowed) + plain / a.factor * slowed;
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

}  // namespace farskip
