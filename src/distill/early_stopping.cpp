// SPDX-License-Identifier: Apache-2.0
#include "distill/early_stopping.h"

#include <cmath>

namespace farskip {
namespace {

bool lower_is_better(HeldOutMetric metric) {
  return metric == HeldOutMetric::validation_loss || metric == HeldOutMetric::validation_kl;
}

}  // namespace

bool EarlyStopping::observe(std::int64_t step, double value, RunNumbers& numbers) const {
  const double sign = lower_is_better(config_.metric) ? 1.0 : -1.0;
  const auto best = numbers.find("best");
  const bool progress =
      best == numbers.end() || sign * value < sign * best->second - config_.delta * std::abs(best->second);
  numbers["looks_without"] = progress ? 0.0 : numbers["looks_without"] + 1.0;
  if (!progress) return false;
  numbers["best"] = value;
  numbers["best_step"] = static_cast<double>(step);
  return true;
}

void EarlyStopping::forget(RunNumbers& numbers) {
  for (const char* name : {"best", "best_step", "looks_without"}) numbers.erase(name);
}

bool EarlyStopping::over(const RunNumbers& numbers) const {
  const auto it = numbers.find("looks_without");
  return it != numbers.end() && it->second >= static_cast<double>(config_.patience);
}

}  // namespace farskip
