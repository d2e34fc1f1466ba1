// SPDX-License-Identifier: Apache-2.0
// Layers x experts as a map of cells.

#include <algorithm>
#include <array>
#include <cmath>

#include "farskip/base/error.h"
#include "report/chart.h"

namespace farskip {
namespace {

constexpr std::size_t kMostRows = 96;

struct Level {
  double from;  // rows over the mean
  const char* meaning;
};
constexpr std::array<Level, 7> kLevels{{{0, "below 1/4"},
                                        {0.25, "1/4 to 1/2"},
                                        {0.5, "1/2 to 4/5"},
                                        {0.8, "4/5 to 5/4"},
                                        {1.25, "5/4 to 2"},
                                        {2, "2 to 4"},
                                        {4, "above 4"}}};

std::size_t level_of(double ratio) {
  std::size_t level = 0;
  while (level + 1 < kLevels.size() && ratio >= kLevels[level + 1].from) ++level;
  return level;
}

/// Sums over the kept steps; of steps with another number of experts the newer counts.
ExpertRows sum_rows(const RunLog& run) {
  ExpertRows sum;
  for (const ExpertRows& rows : run.expert_rows)
    for (const auto& [layer, values] : rows) {
      std::vector<double>& total = sum[layer];
      if (total.size() != values.size()) total.assign(values.size(), 0.0);
      for (std::size_t i = 0; i < values.size(); ++i) total[i] += values[i];
    }
  return sum;
}

/// Over the mean; the largest of neighbours where there are more experts than columns.
std::vector<double> ratios_of(const std::vector<double>& rows, std::size_t columns) {
  double sum = 0;
  for (const double value : rows) sum += value;
  const double mean = sum / static_cast<double>(rows.size());
  std::vector<double> ratios(std::min(rows.size(), columns), 0.0);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    double& cell = ratios[i * ratios.size() / rows.size()];
    cell = std::max(cell, mean > 0 ? rows[i] / mean : 0.0);
  }
  return ratios;
}

std::string row_svg(const std::vector<double>& ratios) {
  std::array<std::string, kLevels.size()> paths;
  for (std::size_t begin = 0; begin < ratios.size();) {
    const std::size_t level = level_of(ratios[begin]);
    std::size_t end = begin + 1;
    while (end < ratios.size() && level_of(ratios[end]) == level) ++end;
    paths[level] += fmt::format("M{} 0h{}v1h-{}z", begin, end - begin, end - begin);
    begin = end;
  }
  std::string svg = fmt::format("<svg viewBox=\"0 0 {} 1\" preserveAspectRatio=\"none\">", ratios.size());
  for (std::size_t level = 0; level < paths.size(); ++level)
    if (!paths[level].empty()) svg += fmt::format("<path class=\"h{}\" d=\"{}\"/>", level, paths[level]);
  if (ratios.size() <= 64) {
    svg += "<path class=\"cuts\" d=\"";
    for (std::size_t i = 1; i < ratios.size(); ++i) svg += fmt::format("M{} 0v1", i);
    svg += "\"/>";
  }
  return svg + "</svg>";
}

}  // namespace

std::string expert_load_html(const std::string& title, const RunLog& run, std::size_t columns) {
  const ExpertRows sum = sum_rows(run);
  std::size_t num_experts = 0;
  for (const auto& [layer, rows] : sum) num_experts = std::max(num_experts, rows.size());
  if (num_experts == 0) return {};
  std::string html = fmt::format(
      "<figure class=\"load\"><figcaption><b>{}</b> <span>rows of each expert over the layer's mean, last {} "
      "recorded {}</span></figcaption>\n<p class=\"legend\">",
      escape_html(title), run.expert_rows.size(), run.expert_rows.size() == 1 ? "step" : "steps");
  for (std::size_t level = 0; level < kLevels.size(); ++level)
    html += fmt::format("<span><i class=\"b{}\"></i>{}</span>", level, kLevels[level].meaning);
  html += "</p>\n<div class=\"heat\"><div class=\"head\"><span>layer</span><span>experts 0 to " +
          std::to_string(num_experts - 1) + "</span><span>busiest</span></div>";
  std::size_t shown = 0;
  for (const auto& [layer, rows] : sum) {
    if (rows.empty() || shown++ >= kMostRows) continue;
    const std::vector<double> ratios = ratios_of(rows, columns);
    html += fmt::format("<div class=\"row\"><span>{}</span>{}<span>{:.2f}</span></div>", layer,
                        row_svg(ratios), *std::max_element(ratios.begin(), ratios.end()));
  }
  html += "</div>";
  if (sum.size() > kMostRows)
    html += fmt::format("<p class=\"note\">the first {} of {} layers</p>", kMostRows, sum.size());
  return html + "</figure>\n";
}

std::string routing_flips_html(const std::string& title, const RunLog& run) {
  double most = 0;
  for (const auto& [layer, share] : run.routing_flips) most = std::max(most, share);
  if (run.routing_flips.empty()) return {};
  std::string html = fmt::format(
      "<figure class=\"load\"><figcaption><b>{}</b> <span>choices of experts other than the teacher's, last "
      "recorded step</span></figcaption>\n<div class=\"heat\">",
      escape_html(title));
  std::size_t shown = 0;
  for (const auto& [layer, share] : run.routing_flips) {
    if (shown++ >= kMostRows) break;
    html += fmt::format(
        "<div class=\"row\"><span>{}</span><div class=\"bar\" "
        "style=\"width:{:.1f}%\"></div><span>{:.1f}%</span></div>",
        layer, most > 0 ? 100 * share / most : 0, 100 * share);
  }
  return html + "</div></figure>\n";
}

}  // namespace farskip
