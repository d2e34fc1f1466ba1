// SPDX-License-Identifier: Apache-2.0
#include "run/learning_rate.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace farskip {

double learning_rate_at(const LearningRateConfig& config, std::int64_t step, std::int64_t steps) {
  if (step < config.warmup_steps)
    return config.peak * static_cast<double>(step + 1) / static_cast<double>(config.warmup_steps);
  const double range = config.peak - config.final_rate;
  switch (config.schedule) {
    case LearningRateSchedule::constant:
      return config.peak;
    case LearningRateSchedule::cosine: {
      const auto span = static_cast<double>(std::max<std::int64_t>(steps - config.warmup_steps, 1));
      const double progress = std::min(1.0, static_cast<double>(step + 1 - config.warmup_steps) / span);
      return config.final_rate + 0.5 * range * (1.0 + std::cos(std::numbers::pi * progress));
    }
    case LearningRateSchedule::wsd: {
      const std::int64_t decay_start = steps - config.decay_steps;
      if (step < decay_start || config.decay_steps == 0) return config.peak;
      const double progress = std::min(
          1.0, static_cast<double>(step + 1 - decay_start) / static_cast<double>(config.decay_steps));
      return config.peak - range * progress;
    }
  }
  throw InternalError("unknown learning-rate schedule");
}

std::optional<std::string> describe_rate_jump(const TrainConfig& config, std::int64_t step,
                                              std::optional<double> before) {
  if (!before || step == 0 || step >= config.steps) return std::nullopt;
  const auto same = [](double a, double b) { return std::abs(a - b) <= 1e-9 * std::max(a, b); };
  const double next = learning_rate_at(config.learning_rate, step, config.steps);
  if (same(*before, learning_rate_at(config.learning_rate, step - 1, config.steps)) || same(*before, next))
    return std::nullopt;
  return fmt::format(
      "the learning rate was {:.3g} in step {} and is {:.3g} in step {}: the schedule is not that of the "
      "checkpoint",
      *before, step, next, step + 1);
}

}  // namespace farskip
