// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a run left in its folder, as the report reads it. Nothing in it is trusted: lines that cannot be read
// are left out and counted, values that are not finite are gaps.

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "farskip/base/file.h"

namespace farskip {

struct Point {
  double x = 0, y = 0;
};
/// By increasing x. A y that is not finite is a gap.
using Curve = std::vector<Point>;

/// Rows routed to each expert, by layer, in one step.
using ExpertRows = std::map<int, std::vector<double>>;

struct RunLog {
  std::string folder;                                      // as it was given
  std::string label;                                       // the run's name; unique among runs (label_runs)
  std::vector<std::pair<std::string, std::string>> facts;  // of config.yaml: what, value
  std::string wiring;                                      // "full"; empty: not known
  std::optional<std::int64_t> ranks, planned_steps;
  std::map<std::string, Curve> curves;  // metric of metrics.jsonl, over steps
  std::map<int, double> routing_flips;  // of a distillation: last share of changed choices, by layer
  std::deque<ExpertRows> expert_rows;   // of the last steps that have them, oldest first
  std::string end;                      // reason in exit.json; empty: still running, or killed
  std::string trace;                    // text of trace.json; empty: none
  std::vector<std::string> notes;       // what was wrong with the files, one sentence each

  const Curve* find(const std::string& metric) const;
};

/// Reads config.yaml, metrics.jsonl, exit.json and trace.json of a folder, each if it is there.
/// MissingInputError without the folder or with neither metrics nor trace; DataError if no line of the
/// metrics can be read.
RunLog read_run_log(const fs::path& folder);

/// Adds the lines of a metrics.jsonl to `run`. A step that was written before replaces all from it on. Curves
/// that are derived: exposed_percent of the step; routing_flips_mean and _worst over the layers; in a
/// distillation `loss` is the student's on the tokens, as in other runs, and what is minimised is
/// `objective`.
void read_metrics(const std::string& text, RunLog& run);

/// Sets each label: the name in the configuration, or the folder where several runs have that name.
void label_runs(std::vector<RunLog>& runs);

/// The figures of one run in the comparison; absent where the run does not have them.
struct RunSummary {
  std::int64_t steps = 0;
  std::optional<double> tokens;
  std::optional<double> loss;   // mean of the last steps
  std::int64_t loss_steps = 0;  // how many
  std::optional<double> validation_loss, best_validation_loss;
  std::optional<double> tokens_per_second;  // median over steps
  std::optional<double> exposed_share;      // exposed communication / time of all steps
  std::optional<double> hidden_share;       // hidden / (hidden + exposed) communication
  std::optional<double> peak_memory_bytes;
  std::optional<double> kl, agreement, recovered_share;  // last values
};
RunSummary summarise_run(const RunLog& run);

}  // namespace farskip
