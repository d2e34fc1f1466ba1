// SPDX-License-Identifier: Apache-2.0
#pragma once
// Line charts as HTML around a stretched SVG: text stays text at any width, curves are thinned to what pixels
// can show.

#include <string>
#include <string_view>
#include <vector>

#include "report/run_log.h"

namespace farskip {

/// For text and for attributes in quotes; control characters become spaces.
std::string escape_html(std::string_view text);
/// "12.3M", "450", "0.0031": three or four digits.
std::string short_number(double value);

/// At most two points of each of `buckets` equal parts of the curve's x range: its lowest and its highest. A
/// part without a finite value is a gap. Shorter curves come back as they are.
Curve thin_curve(const Curve& curve, std::size_t buckets);
/// Exponential mean over about `window` points, without a bias to the first.
Curve smooth_curve(const Curve& curve, double window);

struct Series {
  std::string label;
  Curve curve;
  std::size_t colour = 0;  // number in the palette
  bool faint = false;      // behind another of the same colour; without a label
  bool dots = false;
};
struct LineChart {
  std::string title, unit, note;
  std::vector<Series> series;
  bool from_zero = false;
  bool wide = false;
  std::size_t buckets = 500;  // of each curve (thin_curve)
};
inline constexpr std::size_t kPaletteSize = 8;

/// A <figure>; empty if no series has a finite point. Logarithmic where positive values span more than 1:100.
/// If a few points are far above the others, the axis ends below them and the note says how many are out.
std::string line_chart_html(const LineChart& chart);

/// A <figure> with a bar for each layer; empty if the run has no routing flips.
std::string routing_flips_html(const std::string& title, const RunLog& run);

/// A <figure> of layers x experts: rows of each expert over the layer's mean. At most `columns` a layer, each
/// the busiest of its experts. Empty if the run has no expert rows.
std::string expert_load_html(const std::string& title, const RunLog& run, std::size_t columns);

}  // namespace farskip
