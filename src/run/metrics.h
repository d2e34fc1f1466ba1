// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a run says while it trains: metrics.jsonl, and a progress line or log lines.

#include <cstdint>
#include <optional>

#include "engine/step_metrics.h"
#include "farskip/base/file.h"
#include "farskip/base/log.h"

namespace farskip {

/// Appends to metrics.jsonl. On resume at `first_step`, lines of later steps (written after the checkpoint
/// that is resumed from) and a torn last line are removed first; so are lines that are damaged, with a
/// warning. With `first_step` 0 a file with lines is set aside, with a warning.
class MetricsFile {
 public:
  MetricsFile(const fs::path& path, std::int64_t first_step, const Logger& logger);
  MetricsFile(const MetricsFile&) = delete;
  MetricsFile& operator=(const MetricsFile&) = delete;
  /// IoError where the line cannot be written; the next start removes what there is of it.
  void append(const StepMetrics& metrics);

 private:
  std::optional<AppendFile> file_;
};

/// A line that is redrawn in place when stderr is a terminal; otherwise a log line about every ten seconds
/// and at every validation.
class Progress {
 public:
  Progress(std::int64_t steps, std::int64_t first_step, Logger logger);
  ~Progress();
  void show(const StepMetrics& metrics);

 private:
  std::int64_t steps_, first_step_;
  Logger logger_;
  bool terminal_;
  bool line_open_ = false;
  double started_, last_shown_ = -1e9;
};

}  // namespace farskip
