// SPDX-License-Identifier: Apache-2.0
#include "cli/search_text.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/plan_text.h"

namespace farskip {
namespace {

constexpr std::size_t kMostShown = 20;

double gib(std::uint64_t bytes) {
  return static_cast<double>(bytes) / (1 << 30);
}

/// The last word of a key, which is enough beside the others.
std::string_view short_name(std::string_view key) {
  return key.substr(key.rfind('.') + 1);
}

std::string settings_text(const Settings& settings) {
  std::string text;
  for (const auto& [key, value] : settings)
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", short_name(key), value);
  return text;
}

void print_fitting(const SearchReport& report, std::size_t count, std::size_t shown) {
  if (count == 0) return fmt::print("nothing fits\n");
  for (const auto& [key, value] : report.results.front().settings) fmt::print("{:>12}", short_name(key));
  fmt::print("{:>12}{:>10}{:>12}{:>9}{:>11}{:>9}{:>13}\n", "tokens/s", "step ms", "memory GiB", "weights",
             "gradients", "moments", "activations");
  for (std::size_t i = 0; i < shown; ++i) {
    const SearchResult& r = report.results[i];
    const MemoryReport& m = r.step->memory;
    for (const auto& [key, value] : r.settings) fmt::print("{:>12}", value);
    fmt::print("{:12.0f}{:10.1f}{:12.2f}{:9.2f}{:11.2f}{:9.2f}{:13.2f}{}\n",
               static_cast<double>(report.tokens) / r.step->seconds, 1e3 * r.step->seconds, gib(m.total()),
               gib(m.weights), gib(m.gradients), gib(m.moments), gib(m.arena), r.is_scheduled ? "" : " *");
  }
  if (shown < count) fmt::print("and {} more (--verbose)\n", count - shown);
  if (!report.results[count - 1].is_scheduled)
    fmt::print("*: planned in graph order alone; the scheduler hides more\n");
}

}  // namespace

void print_search(const PlanRequest& base, const SearchReport& report, bool all) {
  print_card(base);
  const auto fitting = static_cast<std::size_t>(std::count_if(
      report.results.begin(), report.results.end(), [](const auto& r) { return r.why_not.empty(); }));
  const auto refused = static_cast<std::size_t>(std::count_if(report.results.begin(), report.results.end(),
                                                              [](const auto& r) { return r.is_refused; }));
  const std::size_t others = report.results.size() - fitting - refused;
  const auto limited = [&](std::size_t count) { return all ? count : std::min(count, kMostShown); };
  fmt::print("{} ranks of {:.2f} GiB, {} tokens a step; predicted, fastest first\n\n", report.ranks,
             gib(report.memory), report.tokens);
  print_fitting(report, fitting, limited(fitting));
  if (others > 0)
    fmt::print("\nnot within {:.2f} GiB, the nearest first; larger micro-batches take more\n",
               gib(report.memory));
  for (std::size_t i = fitting; i < fitting + limited(others); ++i)
    fmt::print("  {}: {}\n", settings_text(report.results[i].settings), report.results[i].why_not);
  if (limited(others) < others) fmt::print("  and {} more (--verbose)\n", others - limited(others));
  if (all && refused > 0) fmt::print("\nno layouts of this job\n");
  for (std::size_t i = fitting + others; all && i < report.results.size(); ++i)
    fmt::print("  {}: {}\n", settings_text(report.results[i].settings), report.results[i].why_not);
  fmt::print("\nsearched in {:.1f} s\n", report.seconds);
}

nlohmann::ordered_json search_json(const SearchReport& report) {
  using Json = nlohmann::ordered_json;
  Json object{{"ranks", report.ranks}, {"memory_bytes", report.memory}, {"tokens", report.tokens}};
  Json& searched = object["searched"] = Json::object();
  for (const SearchedKey& key : report.space.layouts) searched[key.key] = key.values;
  searched[report.space.micro_batches.key] = report.space.micro_batches.values;
  for (const Recompute choice : report.space.recompute)
    searched["schedule.recompute"].push_back(name_of(recompute_names, choice));
  object["fits"] = object["too_large"] = object["refused"] = Json::array();
  for (const SearchResult& r : report.results) {
    Json settings = Json::object();
    for (const auto& [key, value] : r.settings) settings[key] = value;
    Json result{{"settings", std::move(settings)}, {"peak_memory_bytes", r.bytes}};
    if (r.step) {
      const MemoryReport& m = r.step->memory;
      result["scheduled"] = r.is_scheduled;
      result["step_seconds"] = r.step->seconds;
      result["tokens_per_second"] = static_cast<double>(report.tokens) / r.step->seconds;
      result["memory_bytes"] = {{"weights", m.weights},
                                {"gradients", m.gradients},
                                {"moments", m.moments},
                                {"activations", m.arena}};
    }
    if (!r.why_not.empty()) result["reason"] = r.why_not;
    object[r.why_not.empty() ? "fits" : r.is_refused ? "refused" : "too_large"].push_back(std::move(result));
  }
  object["planning_seconds"] = report.seconds;
  return object;
}

}  // namespace farskip
