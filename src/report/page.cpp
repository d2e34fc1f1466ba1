// SPDX-License-Identifier: Apache-2.0
#include "report/page.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <span>

#include "base/version.h"
#include "farskip/base/error.h"
#include "report/chart.h"
#include "report/comparison.h"
#include "report/style.h"
#include "report/timeline.h"

namespace farskip {
namespace {

constexpr std::size_t kMostDrawn = 16;           // runs in one chart
constexpr std::size_t kMostMaps = 4;             // runs with a timeline and a map of their own
constexpr std::size_t kTimelineBytes = 360'000;  // of all timelines

struct Curves {
  const char* metric;
  const char* label;  // beside others in one chart
  /// Of several runs: the metric in whose chart this is one line, where it is the same constant in all of
  /// them.
  const char* level_for = nullptr;
};
struct ChartPlan {
  const char* title;
  const char* unit;
  std::vector<Curves> metrics;
  double factor = 1;
  bool from_zero = false, smooth = false, wide = false;
};

/// All charts in their order; those without data are left out.
std::vector<ChartPlan> chart_plans() {
  std::vector<ChartPlan> plans;
  plans.push_back({.title = "Loss",
                   .unit = "nats per token",
                   .metrics = {{"loss", "training"},
                               {"validation_loss", "validation"},
                               {"teacher_loss", "teacher"},
                               {"validation_teacher_loss", "teacher, validation", "validation_loss"},
                               {"validation_untrained_loss", "rewired, not distilled", "validation_loss"}},
                   .smooth = true,
                   .wide = true});
  plans.push_back({.title = "Recovered share",
                   .unit = "of the loss that conversion cost, %",
                   .metrics = {{"recovered", "recovered"}},
                   .factor = 100});
  plans.push_back({.title = "Divergence from the teacher",
                   .unit = "KL, nats per token",
                   .metrics = {{"kl", "training"}, {"validation_kl", "validation"}},
                   .smooth = true});
  plans.push_back({.title = "Agreement with the teacher",
                   .unit = "equal top-1, %",
                   .metrics = {{"agreement", "training"}, {"validation_agreement", "validation"}},
                   .factor = 100,
                   .smooth = true});
  plans.push_back({.title = "Routing flips",
                   .unit = "choices of experts other than the teacher's, %",
                   .metrics = {{"routing_flips_mean", "all layers"}, {"routing_flips_worst", "worst layer"}},
                   .factor = 100,
                   .smooth = true});
  plans.push_back(
      {.title = "Objective", .unit = "", .metrics = {{"objective", "objective"}}, .smooth = true});
  plans.push_back({.title = "Intermediate loss",
                   .unit = "",
                   .metrics = {{"hidden_loss", "hidden states"},
                               {"router_agreement", "routers"},
                               {"local_loss", "blocks by themselves"}},
                   .smooth = true});
  plans.push_back({.title = "Throughput",
                   .unit = "tokens/s",
                   .metrics = {{"tokens_per_second", "tokens/s"}},
                   .from_zero = true,
                   .smooth = true});
  plans.push_back({.title = "Exposed communication",
                   .unit = "% of the step",
                   .metrics = {{"exposed_percent", "exposed"}},
                   .from_zero = true,
                   .smooth = true});
  plans.push_back({.title = "Gradient norm",
                   .unit = "before clipping",
                   .metrics = {{"grad_norm", "norm"}},
                   .smooth = true});
  plans.push_back(
      {.title = "Learning rate", .unit = "", .metrics = {{"learning_rate", "rate"}}, .from_zero = true});
  plans.push_back({.title = "Expert load",
                   .unit = "busiest expert over the mean, worst layer",
                   .metrics = {{"load_max_over_mean", "load"}},
                   .smooth = true});
  plans.push_back({.title = "Balance loss",
                   .unit = "without its coefficient",
                   .metrics = {{"aux_loss", "loss"}},
                   .smooth = true});
  return plans;
}

Curve scale_curve(Curve curve, double factor) {
  for (Point& p : curve) p.y *= factor;
  return curve;
}

bool says_something(const Curve& curve) {
  return std::any_of(curve.begin(), curve.end(),
                     [](const Point& p) { return std::isfinite(p.y) && p.y != 0; });
}

constexpr std::size_t kSmoothFrom = 60;  // points
double window_of(const Curve& curve) {
  return std::max(2.0, static_cast<double>(curve.size()) / 50);
}

/// The curve, or its mean over a window with the curve itself faintly behind it where that is alone.
void add_series(LineChart& chart, const ChartPlan& plan, const Curve& raw, const std::string& label,
                std::size_t colour, bool alone) {
  Curve curve = scale_curve(raw, plan.factor);
  const bool smooth = plan.smooth && curve.size() >= kSmoothFrom;
  if (!smooth) {
    chart.series.push_back({label, std::move(curve), colour, false, true});
    return;
  }
  chart.series.push_back({label, smooth_curve(curve, window_of(curve)), colour, false, false});
  if (alone) chart.series.push_back({label, std::move(curve), colour, true, false});
  if (plan.wide) chart.note = "noisy curves, here and below, are means over about a fiftieth of the steps";
}

LineChart make_chart(const ChartPlan& plan, const std::string& title, std::size_t num_runs) {
  LineChart chart;
  chart.title = title;
  chart.unit = plan.unit;
  chart.from_zero = plan.from_zero;
  chart.wide = plan.wide;
  chart.buckets = std::clamp<std::size_t>(1200 / num_runs, 75, 500);
  return chart;
}

const Curve* find_curve(const RunLog& run, const Curves& metric) {
  const Curve* curve = run.find(metric.metric);
  return curve != nullptr && says_something(*curve) ? curve : nullptr;
}

/// All metrics of one run in one chart.
std::string draw_run(const ChartPlan& plan, const RunLog& run, const std::string& title) {
  LineChart chart = make_chart(plan, title, 1);
  for (std::size_t i = 0; i < plan.metrics.size(); ++i)
    if (const Curve* curve = find_curve(run, plan.metrics[i]))
      add_series(chart, plan, *curve, plan.metrics[i].label, i, true);
  return line_chart_html(chart);
}

/// The value that a metric has everywhere in all runs that have it, if there is one.
std::optional<double> common_level(const Curves& metric, std::span<const RunLog> runs) {
  std::optional<double> level;
  for (const RunLog& run : runs)
    if (const Curve* curve = find_curve(run, metric))
      for (const Point& p : *curve) {
        if (level && p.y != *level) return std::nullopt;
        level = p.y;
      }
  return level;
}

/// Lines for metrics that are levels for `metric`, from one side of the chart to the other.
void add_levels(LineChart& chart, const ChartPlan& plan, const Curves& metric, std::span<const RunLog> runs) {
  double first = HUGE_VAL, last = -HUGE_VAL;
  for (const Series& s : chart.series)
    for (const Point& p : s.curve) {
      first = std::min(first, p.x);
      last = std::max(last, p.x);
    }
  for (const Curves& level : plan.metrics) {
    if (level.level_for == nullptr || std::string_view(level.level_for) != metric.metric) continue;
    std::string_view label = level.label;  // the chart is that of validation
    if (label.ends_with(", validation")) label.remove_suffix(std::string_view(", validation").size());
    if (const auto y = common_level(level, runs); y && first < last)
      chart.series.push_back({std::string(label),
                              {{first, *y * plan.factor}, {last, *y * plan.factor}},
                              chart.series.size(),
                              false,
                              false});
  }
}

/// A chart for each metric, the runs in it. Of several metrics, those that one run alone has are drawn with
/// its others: a teacher's loss says more beside the student's than by itself.
std::string draw_runs(const ChartPlan& plan, std::span<const RunLog> runs) {
  const bool several = plan.metrics.size() > 1;
  std::string html;
  std::set<std::size_t> alone;
  for (const Curves& metric : plan.metrics) {
    if (metric.level_for != nullptr && common_level(metric, runs)) continue;
    LineChart chart =
        make_chart(plan, several ? fmt::format("{}, {}", plan.title, metric.label) : plan.title, runs.size());
    std::vector<std::size_t> with;
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const Curve* curve = find_curve(runs[i], metric);
      if (curve == nullptr) continue;
      add_series(chart, plan, *curve, runs[i].label, i, false);
      with.push_back(i);
    }
    add_levels(chart, plan, metric, runs);
    if (several && with.size() == 1)
      alone.insert(with[0]);
    else
      html += line_chart_html(chart);
  }
  for (const std::size_t i : alone)
    html += draw_run(plan, runs[i], fmt::format("{}, {}", plan.title, runs[i].label));
  return html;
}

std::string draw_charts(const ChartPlan& plan, const std::vector<RunLog>& runs) {
  if (runs.size() == 1) return draw_run(plan, runs[0], plan.title);
  return draw_runs(plan, std::span(runs).first(std::min(runs.size(), kMostDrawn)));
}

std::string timelines_html(std::vector<RunLog>& runs) {
  std::string html;
  const auto traced = static_cast<std::size_t>(
      std::count_if(runs.begin(), runs.end(), [](const RunLog& run) { return !run.trace.empty(); }));
  std::size_t shown = 0;
  for (RunLog& run : runs) {
    if (run.trace.empty() || ++shown > kMostMaps) continue;
    try {
      html += timeline_html(runs.size() == 1 ? "Overlap" : "Overlap, " + run.label, read_trace(run.trace),
                            kTimelineBytes / std::min(traced, kMostMaps));
    } catch (const DataError& error) {
      run.notes.push_back(fmt::format("trace.json is left out: {}.", error.what()));
    }
  }
  return html;
}

std::string expert_loads_html(const std::vector<RunLog>& runs) {
  std::string html;
  const std::size_t shown = std::min(runs.size(), kMostMaps);
  for (std::size_t i = 0; i < shown; ++i)
    html += expert_load_html(runs.size() == 1 ? "Rows per expert" : "Rows per expert, " + runs[i].label,
                             runs[i], 256 / shown);
  return html;
}

std::string routing_flips_html(const std::vector<RunLog>& runs) {
  std::string html;
  for (std::size_t i = 0; i < std::min(runs.size(), kMostMaps); ++i)
    html += routing_flips_html(
        runs.size() == 1 ? "Routing flips by layer" : "Routing flips by layer, " + runs[i].label, runs[i]);
  return html;
}

std::string title_of(const std::vector<RunLog>& runs) {
  if (runs.size() <= 3) {
    std::string title;
    for (const RunLog& run : runs) title += (title.empty() ? "" : ", ") + run.label;
    return title;
  }
  return fmt::format("{} and {} more runs", runs[0].label, runs.size() - 1);
}

/// What all runs have in common and a reader asks first.
std::string subtitle_html(const std::vector<RunLog>& runs) {
  std::string text;
  for (const std::string key : {"model", "ranks", "machine", "commit"}) {
    std::string common;
    bool same = true;
    for (const RunLog& run : runs) {
      const auto fact =
          std::find_if(run.facts.begin(), run.facts.end(), [&](const auto& f) { return f.first == key; });
      const std::string value = fact == run.facts.end() ? std::string() : fact->second;
      same = same && (&run == &runs.front() || value == common);
      common = value;
    }
    if (!same || common.empty()) continue;
    text += (text.empty() ? "" : " &middot; ") +
            (key == "ranks" || key == "commit" ? key + " " : std::string()) + escape_html(common);
  }
  return text.empty() ? text : "<p>" + text + "</p>";
}

std::string notes_html(const std::vector<RunLog>& runs) {
  std::string items;
  for (const RunLog& run : runs)
    for (const std::string& note : run.notes)
      items += "<li>" + escape_html(runs.size() > 1 ? run.label + ": " + note : note) + "</li>";
  if (runs.size() > kMostDrawn)
    items +=
        fmt::format("<li>Charts show the first {} of {} runs, the table all.</li>", kMostDrawn, runs.size());
  return items.empty() ? items : "<ul class=\"notes\">" + items + "</ul>\n";
}

}  // namespace

std::string report_html(std::vector<RunLog>& runs) {
  FARSKIP_CHECK(!runs.empty(), "a report needs a run");
  // Both add to the notes, which come first on the page.
  const std::string timelines = timelines_html(runs), loads = expert_loads_html(runs);
  std::string wide, narrow;
  for (const ChartPlan& plan : chart_plans()) (plan.wide ? wide : narrow) += draw_charts(plan, runs);
  const std::string title = escape_html(title_of(runs));
  return fmt::format(
             "{}\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
             "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
             "<title>{} - FarSkip</title>\n<style>{}</style></head>\n<body><main>\n",
             kPageBegin, title, report_style()) +
         fmt::format("<header><h1>{}</h1>{}</header>\n", title, subtitle_html(runs)) + notes_html(runs) +
         comparison_html(runs) + wide +
         (narrow.empty() ? "" : "<div class=\"grid2\">\n" + narrow + "</div>\n") + timelines + loads +
         routing_flips_html(runs) + facts_html(runs) +
         fmt::format(
             "<footer>written by farskip {} ({})</footer>\n</main>\n<script>{}</script></body></html>\n",
             version(), escape_html(commit()), report_script());
}

}  // namespace farskip
