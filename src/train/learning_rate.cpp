#include "farskip/train/learning_rate.h"

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

}  // namespace farskip
