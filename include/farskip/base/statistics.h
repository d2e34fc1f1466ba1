#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

namespace farskip {

/// The smallest of the values that a share (0 to 1) of them does not exceed. There is at least one.
inline double quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  const auto rank =
      static_cast<std::size_t>(std::ceil(share * static_cast<double>(values.size()))) - (share > 0 ? 1 : 0);
  return values[std::min(rank, values.size() - 1)];
}

/// Of an even number of values, the upper one of the middle two.
inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace farskip
