// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>

#include "report/chart.h"

namespace farskip {
namespace {

constexpr double kGap = std::numeric_limits<double>::quiet_NaN();

void add_bucket(const Curve& curve, std::size_t begin, std::size_t end, Curve& out) {
  std::size_t low = end, high = end;
  for (std::size_t i = begin; i < end; ++i) {
    if (!std::isfinite(curve[i].y)) continue;
    if (low == end || curve[i].y < curve[low].y) low = i;
    if (high == end || curve[i].y > curve[high].y) high = i;
  }
  if (low == end) {
    out.push_back({curve[begin].x, kGap});
    return;
  }
  out.push_back(curve[std::min(low, high)]);
  if (low != high) out.push_back(curve[std::max(low, high)]);
}

}  // namespace

Curve thin_curve(const Curve& curve, std::size_t buckets) {
  if (curve.size() <= 2 * buckets) return curve;
  const double first = curve.front().x, width = (curve.back().x - first) / static_cast<double>(buckets);
  const auto bucket_of = [&](std::size_t i) {
    return std::min(buckets - 1, static_cast<std::size_t>((curve[i].x - first) / width));
  };
  Curve thin;
  for (std::size_t begin = 0; begin < curve.size();) {
    std::size_t end = begin + 1;
    while (end < curve.size() && bucket_of(end) == bucket_of(begin)) ++end;
    add_bucket(curve, begin, end, thin);
    begin = end;
  }
  return thin;
}

Curve smooth_curve(const Curve& curve, double window) {
  const double keep = 1.0 - 1.0 / std::max(1.0, window);
  double sum = 0, weight = 0;
  Curve smooth;
  smooth.reserve(curve.size());
  for (const Point& p : curve) {
    if (!std::isfinite(p.y)) {
      smooth.push_back({p.x, kGap});
      continue;
    }
    sum = keep * sum + (1 - keep) * p.y;
    weight = keep * weight + (1 - keep);
    smooth.push_back({p.x, sum / weight});
  }
  return smooth;
}

}  // namespace farskip
