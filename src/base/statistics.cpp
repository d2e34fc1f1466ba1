// SPDX-License-Identifier: Apache-2.0
#include "base/statistics.h"

#include <algorithm>
#include <cmath>

namespace farskip {

double quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  const auto rank =
      static_cast<std::size_t>(std::ceil(share * static_cast<double>(values.size()))) - (share > 0 ? 1 : 0);
  return values[std::min(rank, values.size() - 1)];
}

}  // namespace farskip
