// SPDX-License-Identifier: Apache-2.0
#pragma once
// The range of an axis and the round values that are written beside it.

#include <string>
#include <vector>

namespace farskip {

struct Tick {
  double value = 0;
  std::string text;
};
struct Axis {
  double low = 0, high = 1;  // low < high
  bool logarithmic = false;  // then low > 0
  std::vector<Tick> ticks;

  /// 0 at low, 1 at high.
  double place(double value) const;
};

/// Room beyond the values, so that lines do not run along the frame.
enum class Padding { none, above, both };

/// About `num_ticks` round values between low and high, which may be equal.
Axis make_axis(double low, double high, int num_ticks, bool logarithmic, Padding padding);

}  // namespace farskip
