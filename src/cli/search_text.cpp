// SPDX-License-Identifier: Apache-2.0
#include "cli/search_text.h"

#include <algorithm>

namespace farskip {
namespace {

constexpr std::size_t kMostShown = 20;

/// The last word of a key, which is enough beside the others.
std::string_view short_name(std::string_view key) {
  return key.substr(key.rfind('.') + 1);
}

std::string settings_text(const Record& settings) {
  std::string text;
  for (const auto& [key, value] : settings.items())
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", short_name(key), value.get<std::string>());
  return text;
}

void print_fitting(const Record& fits, std::size_t shown) {
  if (fits.empty()) return fmt::print("nothing fits\n");
  for (const auto& [key, value] : fits.front()["settings"].items()) fmt::print("{:>12}", short_name(key));
  fmt::print("{:>12}{:>10}{:>12}{:>9}{:>11}{:>9}{:>13}\n", "tokens/s", "step ms", "memory GiB", "weights",
             "gradients", "moments", "activations");
  for (std::size_t i = 0; i < shown; ++i) {
    for (const auto& [key, value] : fits[i]["settings"].items())
      fmt::print("{:>12}", value.get<std::string>());
    fmt::print("{}{}\n",
               text_of(fits[i],
                       "{tokens_per_second:12.0f}{step_seconds|ms:10.1f}{peak_memory_bytes|GiB:12.2f}"
                       "{memory_bytes.weights|GiB:9.2f}{memory_bytes.gradients|GiB:11.2f}"
                       "{memory_bytes.moments|GiB:9.2f}{memory_bytes.activations|GiB:13.2f}"),
               fits[i]["scheduled"].get<bool>() ? "" : " *");
  }
  if (shown < fits.size()) fmt::print("and {} more (--verbose)\n", fits.size() - shown);
  if (!fits.back()["scheduled"].get<bool>())
    fmt::print("*: planned in graph order alone; the scheduler hides more\n");
}

void print_reasons(const Record& results, std::size_t shown) {
  for (std::size_t i = 0; i < shown; ++i)
    fmt::print("  {}: {}\n", settings_text(results[i]["settings"]), text_of(results[i], "{reason}"));
}

}  // namespace

void print_search(const Record& report, bool all) {
  const Record &fits = report["fits"], &others = report["too_large"], &refused = report["refused"];
  const auto limited = [&](std::size_t count) { return all ? count : std::min(count, kMostShown); };
  print_line(
      report,
      "{ranks} ranks of {memory_bytes|GiB:.2f} GiB, {tokens} tokens a step; predicted, fastest first\n");
  print_fitting(fits, limited(fits.size()));
  if (!others.empty())
    print_line(report,
               "\nnot within {memory_bytes|GiB:.2f} GiB, the nearest first; larger micro-batches take more");
  print_reasons(others, limited(others.size()));
  if (limited(others.size()) < others.size())
    fmt::print("  and {} more (--verbose)\n", others.size() - limited(others.size()));
  if (all && !refused.empty()) fmt::print("\nno layouts of this job\n");
  if (all) print_reasons(refused, refused.size());
  print_line(report, "\nsearched in {planning_seconds:.1f} s");
}

Record search_record(const SearchReport& report) {
  Record object{{"ranks", report.ranks}, {"memory_bytes", report.memory}, {"tokens", report.tokens}};
  Record& searched = object["searched"] = Record::object();
  for (const SearchedKey& key : report.space.layouts) searched[key.key] = key.values;
  searched[report.space.micro_batches.key] = report.space.micro_batches.values;
  for (const Recompute choice : report.space.recompute)
    searched["schedule.recompute"].push_back(name_of(recompute_names, choice));
  object["fits"] = object["too_large"] = object["refused"] = Record::array();
  for (const SearchResult& r : report.results) {
    Record settings = Record::object();
    for (const auto& [key, value] : r.settings) settings[key] = value;
    Record result{{"settings", std::move(settings)}, {"peak_memory_bytes", r.bytes}};
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
