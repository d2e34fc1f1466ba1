// SPDX-License-Identifier: Apache-2.0
// metrics.jsonl as curves.

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <utility>

#include "farskip/base/error.h"
#include "report/run_log.h"

namespace farskip {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kKeptExpertRows = 16;  // steps
constexpr std::size_t kMaxCurves = 200;      // a run writes about twenty
constexpr std::size_t kMaxLayers = 4096;
constexpr double kGap = std::numeric_limits<double>::quiet_NaN();

/// NaN and Infinity, which JSON does not have and other writers use all the same, as null.
std::string replace_non_finite(std::string line) {
  for (const std::string_view word : {"-Infinity", "Infinity", "-inf", "inf", "NaN", "-nan", "nan"})
    for (std::size_t at = 0; (at = line.find(word, at)) != std::string::npos;) {
      const std::size_t before = at == 0 ? std::string::npos : line.find_last_not_of(' ', at - 1);
      if (before != std::string::npos && line[before] == ':')
        line.replace(at, word.size(), "null");
      else
        at += word.size();
    }
  return line;
}

Json parse_line(const std::string& line) {
  Json object = Json::parse(line, nullptr, false);
  return object.is_discarded() ? Json::parse(replace_non_finite(line), nullptr, false) : object;
}

std::optional<double> step_of(const Json& object) {
  if (!object.is_object()) return std::nullopt;
  const auto found = object.find("step");
  if (found == object.end() || !found->is_number_integer()) return std::nullopt;
  const auto step = found->get<double>();
  return step >= 0 ? std::optional(step) : std::nullopt;
}

void add_point(RunLog& run, const std::string& metric, double step, double value) {
  if (run.curves.size() >= kMaxCurves && !run.curves.contains(metric)) return;
  run.curves[metric].push_back({step, std::isfinite(value) ? value : kGap});
}

std::optional<int> layer_of(const std::string& key) {
  const bool digits = std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; });
  return digits && !key.empty() && key.size() < 7 ? std::optional(std::stoi(key)) : std::nullopt;
}

ExpertRows read_expert_rows(const Json& object) {
  ExpertRows layers;
  for (const auto& [key, rows] : object.items()) {
    const std::optional<int> layer = layer_of(key);
    if (!layer || !rows.is_array() || rows.empty() || layers.size() >= kMaxLayers) continue;
    std::vector<double>& values = layers[*layer];
    for (const Json& value : rows)
      values.push_back(value.is_number() ? std::max(0.0, value.get<double>()) : 0);
  }
  return layers;
}

void add_routing_flips(RunLog& run, const Json& object, double step) {
  double sum = 0, worst = 0, count = 0;
  for (const auto& [key, value] : object.items()) {
    const std::optional<int> layer = layer_of(key);
    if (!layer || !value.is_number() || count >= kMaxLayers) continue;
    const auto share = std::clamp(value.get<double>(), 0.0, 1.0);
    run.routing_flips[*layer] = share;
    sum += share;
    worst = std::max(worst, share);
    ++count;
  }
  if (count == 0) return;
  add_point(run, "routing_flips_mean", step, sum / count);
  add_point(run, "routing_flips_worst", step, worst);
}

// What is a share of the step is shown as one.
void add_shares(RunLog& run, const Json& object, double step) {
  const auto number = [&object](const char* key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_number() ? found->get<double>() : kGap;
  };
  const double exposed = number("exposed_comm_seconds"), seconds = number("step_seconds");
  if (std::isfinite(exposed) && seconds > 0) add_point(run, "exposed_percent", step, 100 * exposed / seconds);
}

/// `next_step`: what follows the last line; receives the same of this one.
bool add_line(const std::string& line, RunLog& run, double& next_step) {
  const Json object = parse_line(line);
  const std::optional<double> step = step_of(object);
  if (!step) return false;
  if (*step < next_step)
    for (auto& [metric, curve] : run.curves)
      while (!curve.empty() && curve.back().x >= *step) curve.pop_back();
  next_step = *step + 1;
  for (const auto& [key, value] : object.items()) {
    if (key == "step") continue;
    if (value.is_number() || value.is_null())
      add_point(run, key, *step, value.is_number() ? value.get<double>() : kGap);
    else if (key == "routing_flips" && value.is_object())
      add_routing_flips(run, value, *step);
    else if (key == "expert_rows" && value.is_object()) {
      run.expert_rows.push_back(read_expert_rows(value));
      if (run.expert_rows.size() > kKeptExpertRows) run.expert_rows.pop_front();
    }
  }
  add_shares(run, object, *step);
  return true;
}

std::optional<double> last_finite(const Curve* curve) {
  if (curve == nullptr) return std::nullopt;
  for (auto p = curve->rbegin(); p != curve->rend(); ++p)
    if (std::isfinite(p->y)) return p->y;
  return std::nullopt;
}

std::vector<double> finite_values(const Curve* curve) {
  std::vector<double> values;
  if (curve == nullptr) return values;
  for (const Point& p : *curve)
    if (std::isfinite(p.y)) values.push_back(p.y);
  return values;
}

std::optional<double> sum_of(const Curve* curve) {
  const std::vector<double> values = finite_values(curve);
  if (values.empty()) return std::nullopt;
  double sum = 0;
  for (const double value : values) sum += value;
  return sum;
}

// The first of `metrics` that the run has: what is measured on held-out text counts before the training
// step's.
std::optional<double> last_of(const RunLog& run, std::initializer_list<const char*> metrics) {
  for (const char* metric : metrics)
    if (const auto value = last_finite(run.find(metric))) return value;
  return std::nullopt;
}

void summarise_times(const RunLog& run, RunSummary& s) {
  std::vector<double> rates = finite_values(run.find("tokens_per_second"));
  if (!rates.empty()) {
    const auto middle = rates.begin() + static_cast<std::ptrdiff_t>(rates.size() / 2);
    std::nth_element(rates.begin(), middle, rates.end());
    s.tokens_per_second = *middle;
  }
  const auto exposed = sum_of(run.find("exposed_comm_seconds")),
             hidden = sum_of(run.find("hidden_comm_seconds")), seconds = sum_of(run.find("step_seconds"));
  if (exposed && seconds && *seconds > 0 && *exposed > 0) s.exposed_share = *exposed / *seconds;
  if (exposed && hidden && *exposed > 0 && *hidden + *exposed > 0)
    s.hidden_share = *hidden / (*hidden + *exposed);
}

}  // namespace

const Curve* RunLog::find(const std::string& metric) const {
  const auto found = curves.find(metric);
  return found == curves.end() ? nullptr : &found->second;
}

void read_metrics(const std::string& text, RunLog& run) {
  std::size_t unreadable = 0, lines = 0;
  bool last_unreadable = false;
  double next_step = 0;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    ++lines;
    last_unreadable = !add_line(line, run, next_step);
    if (last_unreadable) ++unreadable;
  }
  if (const auto student = run.curves.find("student_loss"); student != run.curves.end()) {
    Curve loss = std::move(student->second);
    run.curves.erase(student);
    run.curves["objective"] = std::exchange(run.curves["loss"], std::move(loss));
  }
  if (unreadable == 0) return;
  if (unreadable == 1 && last_unreadable && !text.ends_with('\n'))
    run.notes.emplace_back("The last line of metrics.jsonl is cut off and left out.");
  else
    run.notes.push_back(
        fmt::format("{} of {} lines of metrics.jsonl cannot be read and are left out.", unreadable, lines));
}

RunSummary summarise_run(const RunLog& run) {
  constexpr std::size_t most_steps = 20;
  RunSummary s;
  for (const auto& [metric, curve] : run.curves)
    if (!curve.empty()) s.steps = std::max(s.steps, static_cast<std::int64_t>(curve.back().x));
  const std::vector<double> losses = finite_values(run.find("loss"));
  if (!losses.empty()) {
    const std::size_t count = std::clamp<std::size_t>(losses.size() / 10, 1, most_steps);
    double sum = 0;
    for (std::size_t i = losses.size() - count; i < losses.size(); ++i) sum += losses[i];
    s.loss = sum / static_cast<double>(count);
    s.loss_steps = static_cast<std::int64_t>(count);
  }
  const std::vector<double> validation = finite_values(run.find("validation_loss"));
  if (!validation.empty()) {
    s.validation_loss = validation.back();
    s.best_validation_loss = *std::min_element(validation.begin(), validation.end());
  }
  const std::vector<double> memory = finite_values(run.find("peak_memory_bytes"));
  if (!memory.empty()) s.peak_memory_bytes = *std::max_element(memory.begin(), memory.end());
  s.tokens = last_of(run, {"tokens"});
  s.kl = last_of(run, {"validation_kl", "kl"});
  s.agreement = last_of(run, {"validation_agreement", "agreement"});
  s.recovered_share = last_of(run, {"recovered"});
  summarise_times(run, s);
  return s;
}

}  // namespace farskip
