// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>

#include "farskip/base/error.h"
#include "report/axis.h"
#include "report/chart.h"

namespace farskip {
namespace {

constexpr double kWidth = 1000, kHeight = 400;  // units of the stretched drawing
constexpr std::size_t kMostLabels = 12;

struct Range {
  double low = INFINITY, high = -INFINITY;
  void add(double value) {
    if (!std::isfinite(value)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  bool empty() const { return low > high; }
};

struct Frame {
  Axis x, y;
  std::size_t num_above = 0, num_gaps = 0;
};

/// Without a few points far above the rest: the 98th percentile, and room for as much again.
Range limit_outliers(const LineChart& chart, std::size_t& num_above) {
  Range all;
  std::vector<double> values;
  for (const Series& s : chart.series)
    for (const Point& p : s.curve)
      if (std::isfinite(p.y)) {
        values.push_back(p.y);
        all.add(p.y);
      }
  if (values.size() < 50) return all;
  std::sort(values.begin(), values.end());
  const double usual = values[values.size() * 98 / 100];
  const double limit = usual + 1.0 * (usual - all.low);
  if (all.high <= limit) return all;
  num_above = static_cast<std::size_t>(values.end() - std::upper_bound(values.begin(), values.end(), limit));
  return {all.low, limit};
}

Frame make_frame(const LineChart& chart) {
  Frame frame;
  Range x, all;
  bool positive = true;
  for (const Series& s : chart.series)
    for (const Point& p : s.curve) {
      x.add(p.x);
      if (!std::isfinite(p.y)) {
        if (!s.faint) ++frame.num_gaps;
        continue;
      }
      all.add(p.y);
      positive = positive && p.y > 0;
    }
  const bool logarithmic = positive && !chart.from_zero && all.high > 100 * all.low;
  Range y = all;
  if (!logarithmic) y = limit_outliers(chart, frame.num_above);
  if (chart.from_zero) y.low = std::min(0.0, y.low);
  frame.x = make_axis(x.low, x.high, chart.wide ? 10 : 6, false, Padding::none);
  frame.y = make_axis(y.low, y.high, chart.wide ? 8 : 5, logarithmic,
                      chart.from_zero ? Padding::above : Padding::both);
  return frame;
}

std::string number(double value) {
  std::string text = fmt::format("{:.1f}", value);
  if (text.ends_with(".0")) text.resize(text.size() - 2);
  return text;
}

std::string path_data(const Curve& curve, const Frame& frame, bool dots) {
  std::string data;
  bool pen_down = false;
  for (const Point& p : curve) {
    if (!std::isfinite(p.y)) {
      pen_down = false;
      continue;
    }
    const double y = std::clamp(1 - frame.y.place(p.y), -0.2, 1.2);
    data += fmt::format("{}{} {}", pen_down && !dots ? 'L' : 'M', number(kWidth * frame.x.place(p.x)),
                        number(kHeight * y));
    if (dots || !pen_down) data += "h0";  // a point without neighbours is a dot
    pen_down = true;
  }
  return data;
}

std::string draw_series(const Series& s, const Frame& frame, std::size_t buckets) {
  const Curve thin = thin_curve(s.curve, buckets);
  const std::string colour = fmt::format("k{}", s.colour % kPaletteSize);
  std::string text;
  if (!s.faint && s.dots && s.curve.size() <= 60)
    text += fmt::format("<path class=\"dots {}\" d=\"{}\"/>", colour, path_data(thin, frame, true));
  return text + fmt::format("<path class=\"{} {}\"{} d=\"{}\"/>", s.faint ? "faint" : "line", colour,
                            s.faint ? "" : fmt::format(" data-label=\"{}\"", escape_html(s.label)),
                            path_data(thin, frame, false));
}

std::string draw_grid(const Frame& frame) {
  std::string data;
  for (const Tick& tick : frame.y.ticks)
    data += fmt::format("M0 {}H{}", number(kHeight * (1 - frame.y.place(tick.value))), number(kWidth));
  return "<path class=\"grid\" d=\"" + data + "\"/>";
}

struct EndLabel {
  double place = 0;  // from the top, 0 to 1
  std::string text;
  std::size_t colour = 0;
};

/// Names and last values beside the ends of the lines, moved apart where they would touch.
std::vector<EndLabel> end_labels(const LineChart& chart, const Frame& frame) {
  std::vector<EndLabel> labels;
  const auto named =
      std::count_if(chart.series.begin(), chart.series.end(), [](const Series& s) { return !s.faint; });
  for (const Series& s : chart.series) {
    if (s.faint || labels.size() >= kMostLabels) continue;
    const auto last =
        std::find_if(s.curve.rbegin(), s.curve.rend(), [](const Point& p) { return std::isfinite(p.y); });
    if (last == s.curve.rend()) continue;
    const std::string value = short_number(last->y);
    const std::string text =
        named > 1 ? fmt::format("<b>{}</b> {}", value, escape_html(s.label)) : "<b>" + value + "</b>";
    labels.push_back({std::clamp(1 - frame.y.place(last->y), 0.0, 1.0), text, s.colour % kPaletteSize});
  }
  std::stable_sort(labels.begin(), labels.end(),
                   [](const auto& a, const auto& b) { return a.place < b.place; });
  const double apart = chart.wide ? 0.062 : 0.09;
  for (std::size_t i = 1; i < labels.size(); ++i)
    labels[i].place = std::max(labels[i].place, labels[i - 1].place + apart);
  double limit = 1.0;
  for (std::size_t i = labels.size(); i-- > 0; limit -= apart)
    labels[i].place = std::min(labels[i].place, limit);
  return labels;
}

std::string note_of(const LineChart& chart, const Frame& frame) {
  std::string note = chart.note;
  const auto add = [&note](const std::string& text) { note += (note.empty() ? "" : "; ") + text; };
  if (frame.num_above > 0)
    add(frame.num_above == 1 ? "1 point lies above the axis"
                             : fmt::format("{} points lie above the axis", frame.num_above));
  if (frame.num_gaps > 0)
    add(frame.num_gaps == 1 ? "1 value is not finite and left out"
                            : fmt::format("{} values are not finite and left out", frame.num_gaps));
  return note;
}

}  // namespace

std::string line_chart_html(const LineChart& chart) {
  const bool any = std::any_of(chart.series.begin(), chart.series.end(), [](const Series& s) {
    return std::any_of(s.curve.begin(), s.curve.end(), [](const Point& p) { return std::isfinite(p.y); });
  });
  if (!any) return {};
  const Frame frame = make_frame(chart);
  std::string html = fmt::format(
      "<figure class=\"chart{}\" data-x=\"{:g},{:g}\" data-y=\"{:g},{:g}\" "
      "data-log=\"{}\">\n<figcaption><b>{}</b> "
      "<span>{}</span></figcaption>\n",
      chart.wide ? " wide" : "", frame.x.low, frame.x.high, frame.y.low, frame.y.high,
      frame.y.logarithmic ? 1 : 0, escape_html(chart.title), escape_html(chart.unit));
  const std::vector<EndLabel> labels = end_labels(chart, frame);
  if (labels.size() > 1) {
    html += "<p class=\"legend\">";
    for (const EndLabel& label : labels)
      html += fmt::format("<span class=\"t{}\"><i></i>{}</span>", label.colour, label.text);
    html += "</p>\n";
  }
  html += fmt::format("<div class=\"plot{}\"><div class=\"ys\">", labels.size() > 1 ? " named" : "");
  for (const Tick& tick : frame.y.ticks)
    html += fmt::format("<span style=\"top:{:.1f}%\">{}</span>", 100 * (1 - frame.y.place(tick.value)),
                        tick.text);
  html += fmt::format("</div><div class=\"area\"><svg viewBox=\"0 0 {} {}\" preserveAspectRatio=\"none\">",
                      kWidth, kHeight) +
          draw_grid(frame);
  for (const Series& s : chart.series)
    if (s.faint) html += draw_series(s, frame, chart.buckets);
  for (const Series& s : chart.series)
    if (!s.faint) html += draw_series(s, frame, chart.buckets);
  html += "</svg></div><div class=\"ends\">";
  for (const EndLabel& label : labels)
    html += fmt::format("<span class=\"t{}\" style=\"top:{:.1f}%\">{}</span>", label.colour,
                        100 * label.place, label.text);
  html += "</div><div class=\"xs\">";
  for (const Tick& tick : frame.x.ticks)
    html += fmt::format("<span style=\"left:{:.1f}%\">{}</span>", 100 * frame.x.place(tick.value), tick.text);
  html += "</div><div class=\"xname\">step</div></div>";
  if (const std::string note = note_of(chart, frame); !note.empty())
    html += "\n<p class=\"note\">" + escape_html(note) + "</p>";
  return html + "</figure>\n";
}

}  // namespace farskip
