#pragma once
#include "farskip/config/run_config.h"

namespace farskip {

/// Learning rate of step `step` (0-based) of `steps`. Linear warm-up to the peak over warmup_steps, then:
/// constant; cosine to `final` at the last step; or wsd, which stays at the peak and falls linearly to
/// `final` over the last decay_steps.
double learning_rate_at(const LearningRateConfig& config, std::int64_t step, std::int64_t steps);

}  // namespace farskip
