// SPDX-License-Identifier: Apache-2.0
#pragma once
// The batches of a step, read while the device works at the step before.

#include <exception>
#include <string>
#include <utility>
#include <vector>

#include "run/run_data.h"

namespace farskip {

/// What this rank computes in a step, and how many targets all ranks have in it.
struct StepBatches {
  std::vector<Batch> batches;
  double targets = 0;
};

class NextBatches {
 public:
  /// `counts`: this rank counts its targets. Of ranks that read the same sequences, one does.
  NextBatches(const Sampler& sampler, const StepSamples& samples, bool counts)
      : sampler_(sampler), samples_(samples), counts_(counts) {}

  /// Reads those of the step that begins with sample `first`, and returns the targets that this rank counts.
  /// Errors are kept: a rank alone must not leave a step that the others are in.
  double read(std::int64_t first);
  /// The targets of all ranks, known with the sums of the step before.
  void set_targets(double targets) { next_.targets = targets; }
  /// There are none: the step is the last.
  void clear() { next_ = {}; }

  const std::exception_ptr& failure() const { return failure_; }
  std::vector<Batch>& batches() { return next_.batches; }
  StepBatches take() { return std::exchange(next_, {}); }
  /// The samples that this rank reads, "64 to 65, 68 to 69".
  std::string samples_text(std::int64_t first) const { return samples_.text(first); }

 private:
  const Sampler& sampler_;
  StepSamples samples_;
  bool counts_;
  StepBatches next_;
  std::exception_ptr failure_;
};

}  // namespace farskip
