// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <utility>
#include <vector>

namespace farskip {

/// The smallest value that a share of all values does not exceed. `values`: not empty.
double quantile(std::vector<double> values, double share);
/// Of an even number of values, the lower of the two in the middle.
inline double median(std::vector<double> values) {
  return quantile(std::move(values), 0.5);
}

}  // namespace farskip
