// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a training run has to remember beside its tensors, in memory and as `state` of a manifest.

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "checkpoint/resume_rules.h"
#include "farskip/model/model_config.h"

namespace farskip {

struct TrainingState {
  std::int64_t step = 0;     // steps done
  std::int64_t samples = 0;  // sequences consumed over all ranks
  std::int64_t tokens = 0;
  RunSettings settings{};                   // that it was trained with; empty in older checkpoints
  std::optional<double> learning_rate{};    // of the last step
  std::map<std::string, double> numbers{};  // what the objective remembers (distill/distillation.h)
  friend bool operator==(const TrainingState&, const TrainingState&) = default;
};

nlohmann::json print_state(const TrainingState& state, const ModelConfig& model);

/// Checks every field; `step` is the manifest's. Throws DataError naming `where`, the field, its value and
/// what is allowed. On return `model` is an object.
TrainingState parse_state(const nlohmann::json& state, std::int64_t step, std::string_view where);

}  // namespace farskip
