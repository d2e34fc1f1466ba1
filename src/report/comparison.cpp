// SPDX-License-Identifier: Apache-2.0
#include "report/comparison.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>

#include "farskip/base/error.h"
#include "report/chart.h"
#include "report/page.h"

namespace farskip {
namespace {

enum class Better { neither, lower, higher };

struct Column {
  const char* key;  // in JSON
  const char* title;
  std::function<std::optional<double>(const RunLog&, const RunSummary&)> value;
  std::function<std::string(double)> text;
  Better better = Better::neither;
};

std::string loss_text(double value) {
  return fmt::format("{:.4f}", value);
}
std::string percent_text(double value) {
  return fmt::format("{:.1f}%", 100 * value);
}
std::string bytes_text(double value) {
  return value < 1 << 30 ? fmt::format("{:.0f} MiB", value / (1 << 20))
                         : fmt::format("{:.2f} GiB", value / (1 << 30));
}

const std::vector<Column>& columns() {
  using Log = const RunLog&;
  using Sum = const RunSummary&;
  static const std::vector<Column> all{
      {"ranks", "ranks",
       [](Log run, Sum) { return run.ranks ? std::optional(static_cast<double>(*run.ranks)) : std::nullopt; },
       short_number, Better::neither},
      {"steps", "steps",
       [](Log, Sum s) { return s.steps > 0 ? std::optional(static_cast<double>(s.steps)) : std::nullopt; },
       [](double value) { return fmt::format("{:.0f}", value); }, Better::neither},
      {"tokens", "tokens", [](Log, Sum s) { return s.tokens; }, short_number, Better::neither},
      {"loss", "training loss", [](Log, Sum s) { return s.loss; }, loss_text, Better::lower},
      {"validation_loss", "validation loss", [](Log, Sum s) { return s.validation_loss; }, loss_text,
       Better::lower},
      {"best_validation_loss", "best validation", [](Log, Sum s) { return s.best_validation_loss; },
       loss_text, Better::lower},
      {"kl", "KL", [](Log, Sum s) { return s.kl; }, loss_text, Better::lower},
      {"agreement", "agreement", [](Log, Sum s) { return s.agreement; }, percent_text, Better::higher},
      {"recovered_share", "recovered", [](Log, Sum s) { return s.recovered_share; }, percent_text,
       Better::higher},
      {"tokens_per_second", "tokens/s", [](Log, Sum s) { return s.tokens_per_second; }, short_number,
       Better::higher},
      {"exposed_share", "comm. exposed", [](Log, Sum s) { return s.exposed_share; }, percent_text,
       Better::lower},
      {"hidden_share", "comm. hidden", [](Log, Sum s) { return s.hidden_share; }, percent_text,
       Better::neither},
      {"peak_memory_bytes", "peak memory", [](Log, Sum s) { return s.peak_memory_bytes; }, bytes_text,
       Better::lower},
  };
  return all;
}

/// columns() x runs.
struct Table {
  std::vector<std::vector<std::optional<double>>> values;  // by run

  explicit Table(const std::vector<RunLog>& runs) {
    for (const RunLog& run : runs) {
      const RunSummary summary = summarise_run(run);
      std::vector<std::optional<double>>& row = values.emplace_back();
      for (const Column& column : columns()) {
        row.push_back(column.value(run, summary));
        if (row.back() && !std::isfinite(*row.back())) row.back().reset();
      }
    }
  }
  bool has(std::size_t column) const {
    return std::any_of(values.begin(), values.end(),
                       [&](const auto& row) { return row[column].has_value(); });
  }
  /// What the best of a column reads; empty where none can be better, or all read the same.
  std::string best(std::size_t column) const {
    const Column& c = columns()[column];
    std::set<double> found;
    for (const auto& row : values)
      if (row[column]) found.insert(*row[column]);
    if (c.better == Better::neither || found.empty() || c.text(*found.begin()) == c.text(*found.rbegin()))
      return {};
    return c.text(c.better == Better::lower ? *found.begin() : *found.rbegin());
  }
};

std::string end_text(const RunLog& run) {
  if (run.curves.empty()) return "";
  std::string text = run.end.empty() ? "running or killed" : run.end;
  const std::int64_t steps = summarise_run(run).steps;
  if (run.planned_steps && steps > 0 && steps != *run.planned_steps)
    text += fmt::format(", step {} of {}", steps, *run.planned_steps);
  return text;
}

std::string tiles_html(const RunLog& run, const Table& table) {
  std::string html = "<dl class=\"tiles\">";
  const auto add = [&html](const std::string& title, const std::string& value) {
    html += fmt::format("<div><dt>{}</dt><dd>{}</dd></div>", escape_html(title), escape_html(value));
  };
  if (!run.wiring.empty()) add("wiring", run.wiring);
  for (std::size_t c = 0; c < columns().size(); ++c)
    if (table.values[0][c]) add(columns()[c].title, columns()[c].text(*table.values[0][c]));
  if (const std::string end = end_text(run); !end.empty()) add("state", end);
  return html + "</dl>\n";
}

std::string run_row(const RunLog& run, std::size_t number, const Table& table) {
  std::string html = fmt::format("<tr><th scope=\"row\" class=\"t{}\"><i></i>{}</th><td>{}</td>",
                                 number % kPaletteSize, escape_html(run.label), escape_html(run.wiring));
  for (std::size_t c = 0; c < columns().size(); ++c) {
    if (!table.has(c)) continue;
    const std::optional<double>& value = table.values[number][c];
    const std::string text = value ? columns()[c].text(*value) : std::string();
    const bool best = value && table.best(c) == text;
    html += fmt::format("<td{}>{}</td>", best ? " class=\"best\"" : "", text);
  }
  return html + "<td>" + escape_html(end_text(run)) + "</td></tr>\n";
}

constexpr const char* kLegend =
    "<p class=\"note\">training loss: mean of the last steps, 20 at most; tokens/s: median; exposed: "
    "communication "
    "that no computation covers, of all step time; hidden: of all communication; bold: the best</p>\n";

}  // namespace

std::string comparison_html(const std::vector<RunLog>& runs) {
  const Table table(runs);
  if (runs.size() == 1) return tiles_html(runs[0], table);
  std::string html = "<div class=\"wide-table\"><table><thead><tr><th>run</th><th>wiring</th>";
  for (std::size_t c = 0; c < columns().size(); ++c)
    if (table.has(c)) html += fmt::format("<th>{}</th>", columns()[c].title);
  html += "<th>state</th></tr></thead>\n<tbody>\n";
  for (std::size_t i = 0; i < runs.size(); ++i) html += run_row(runs[i], i, table);
  return html + "</tbody></table></div>\n" + kLegend;
}

std::string facts_html(const std::vector<RunLog>& runs) {
  std::vector<std::string> keys;
  for (const RunLog& run : runs)
    for (const auto& fact : run.facts)
      if (std::find(keys.begin(), keys.end(), fact.first) == keys.end()) keys.push_back(fact.first);
  const auto value_of = [](const RunLog& run, const std::string& key) {
    for (const auto& fact : run.facts)
      if (fact.first == key) return fact.second;
    return std::string("not recorded");
  };
  std::string rows;
  for (const std::string& key : keys) {
    std::vector<std::pair<std::string, std::string>> values;  // value, runs
    for (const RunLog& run : runs) {
      const std::string value = value_of(run, key);
      const auto same =
          std::find_if(values.begin(), values.end(), [&](const auto& v) { return v.first == value; });
      if (same == values.end())
        values.emplace_back(value, run.label);
      else
        same->second += ", " + run.label;
    }
    rows += "<div><dt>" + escape_html(key) + "</dt><dd>";
    for (const auto& [value, labels] : values)
      rows += "<p>" + escape_html(value) +
              (values.size() > 1 ? " <span>" + escape_html(labels) + "</span>" : std::string()) + "</p>";
    rows += "</dd></div>\n";
  }
  rows += "<div><dt>folder</dt><dd>";
  for (const RunLog& run : runs) rows += "<p>" + escape_html(run.folder) + "</p>";
  return "<h2>Setup</h2>\n<dl class=\"facts\">\n" + rows + "</dd></div></dl>\n";
}

nlohmann::ordered_json comparison_json(const std::vector<RunLog>& runs) {
  const Table table(runs);
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (std::size_t i = 0; i < runs.size(); ++i) {
    nlohmann::ordered_json row{{"name", runs[i].label}, {"run_dir", runs[i].folder}};
    if (!runs[i].wiring.empty()) row["wiring"] = runs[i].wiring;
    for (std::size_t c = 0; c < columns().size(); ++c) {
      if (!table.values[i][c]) continue;
      const double value = *table.values[i][c];
      if (value == std::floor(value) && std::abs(value) < 9e15)
        row[columns()[c].key] = static_cast<std::int64_t>(value);
      else
        row[columns()[c].key] = value;
    }
    list.push_back(std::move(row));
  }
  return {{"runs", list}};
}

}  // namespace farskip
