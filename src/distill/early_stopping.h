// SPDX-License-Identifier: Apache-2.0
#pragma once
// The end of a run that makes no progress on held-out text.

#include <map>
#include <string>

#include "farskip/config/run_config.h"

namespace farskip {

/// Numbers that last over a resume (TrainingState::numbers).
using RunNumbers = std::map<std::string, double>;

/// A look makes progress when it is better than the best so far by more than `delta` of it.
class EarlyStopping {
 public:
  explicit EarlyStopping(const EarlyStoppingConfig& config) : config_(config) {}
  bool looks_at(std::int64_t step) const { return step % config_.every == 0; }
  HeldOutMetric metric() const { return config_.metric; }
  /// Returns whether this look made progress. Keeps its place in `numbers`: best, best_step, looks_without.
  bool observe(std::int64_t step, double value, RunNumbers& numbers) const;
  bool over(const RunNumbers& numbers) const;
  /// The next look is the first.
  static void forget(RunNumbers& numbers);

 private:
  EarlyStoppingConfig config_;
};

}  // namespace farskip
