// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>
#include <string>

#include "farskip/config/run_config.h"

namespace farskip {

/// Learning rate of step `step` (0-based) of `steps`. Linear warm-up to the peak over warmup_steps, then:
/// constant; cosine to `final` at the last step; or wsd, which stays at the peak and falls linearly to
/// `final` over the last decay_steps.
double learning_rate_at(const LearningRateConfig& config, std::int64_t step, std::int64_t steps);

/// After a resume at `step` (steps done) with `before`, the rate of the last one: says so where the schedule
/// does not go on from there.
std::optional<std::string> describe_rate_jump(const TrainConfig& config, std::int64_t step,
                                              std::optional<double> before);

}  // namespace farskip
