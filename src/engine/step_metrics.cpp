// SPDX-License-Identifier: Apache-2.0
#include "engine/step_metrics.h"

#include <nlohmann/json.hpp>

namespace farskip {

std::string StepMetrics::json() const {
  nlohmann::ordered_json o;
  o["step"] = step;
  o["loss"] = loss;
  o["grad_norm"] = grad_norm;
  o["learning_rate"] = learning_rate;
  o["tokens"] = tokens;
  o["tokens_per_second"] = tokens_per_second;
  o["step_seconds"] = step_seconds;
  o["model_tflops"] = model_tflops;
  const auto measured = [](const std::optional<double>& value) {
    return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json();
  };
  o["exposed_comm_seconds"] = measured(exposed_comm_seconds);
  o["hidden_comm_seconds"] = measured(hidden_comm_seconds);
  o["peak_memory_bytes"] = peak_memory_bytes;
  if (validation_loss) o["validation_loss"] = *validation_loss;
  for (const auto& [name, value] : distill) o[name] = value;
  for (const auto& [layer, share] : routing_flips) o["routing_flips"][std::to_string(layer)] = share;
  if (aux_loss) o["aux_loss"] = *aux_loss;
  if (load_max_over_mean) o["load_max_over_mean"] = *load_max_over_mean;
  o["dropped_tokens"] = dropped_tokens;
  o["repeated_steps"] = repeated_steps;
  if (!deterministic) o["deterministic"] = false;
  for (const auto& [layer, rows] : expert_rows)
    o["expert_rows"][std::to_string(layer)] = std::vector<std::int64_t>(rows.begin(), rows.end());
  return o.dump();
}

}  // namespace farskip
