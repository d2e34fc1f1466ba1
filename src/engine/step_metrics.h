// SPDX-License-Identifier: Apache-2.0
#pragma once
// The numbers of a step that a run reports.

#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace farskip {

/// A number that there is not, null in JSON: NaN proper ends a run before it is written.
inline constexpr double kNoNumber = std::numeric_limits<double>::quiet_NaN();

struct StepMetrics {
  std::int64_t step = 0;  // 1-based: steps done
  double loss = 0;        // mean over the step's counted tokens, nats; kNoNumber without any
  double grad_norm = 0;   // likewise
  double learning_rate = 0;
  std::int64_t tokens = 0;  // of all steps so far
  double tokens_per_second = 0, step_seconds = 0, model_tflops = 0;
  std::optional<double> exposed_comm_seconds, hidden_comm_seconds;  // absent: not measured, null
  std::uint64_t peak_memory_bytes = 0;
  std::optional<double> validation_loss, aux_loss, load_max_over_mean;
  std::map<std::string, double> distill;  // of distillation, by their names in metrics.jsonl
  std::map<int, double> routing_flips;    // by layer: share of the choices that are not the teacher's
  std::int64_t dropped_tokens = 0;
  std::int64_t repeated_steps = 0;                 // 1: routed rows did not fit at first
  bool deterministic = true;                       // false: another run may give other last bits
  std::map<int, std::vector<double>> expert_rows;  // by layer, rows of each expert; empty on most steps

  /// One JSON object, keys as docs/configuration.md lists them.
  std::string json() const;
};

}  // namespace farskip
