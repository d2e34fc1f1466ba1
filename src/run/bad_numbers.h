// SPDX-License-Identifier: Apache-2.0
#pragma once
// Numbers that are not finite, and models that have stopped learning: where they are, said in time.

#include <cstdint>
#include <optional>
#include <string>

#include "checkpoint/checkpoint_shards.h"
#include "farskip/comm/communicator.h"

namespace farskip {

/// Names the first tensor of this rank with a value that is not finite, by its hub name, and counts the
/// others: "parameter model.norm.weight (and 2 more tensors)"; empty where all are finite. Parameters come
/// first, in the model's order, since what else is wrong follows from them; then moments; then gradients, the
/// last layer first, which is the order in which the backward pass makes them.
std::string describe_bad_tensors(const States& states);

/// A step that gave a loss or a gradient norm that is not finite.
struct BadStep {
  std::int64_t step = 0;  // from 1
  bool loss_is_finite = false, updated = false;
  std::string tensors;      // of this rank, as describe_bad_tensors has them
  std::string own_samples;  // of this rank, where its own loss is not finite; else empty
  std::string samples;      // of all ranks
};
/// Says it with what the ranks found, each for itself. Collective; the same on every rank.
std::string describe_bad_step(const Communicator& world, const BadStep& bad);

/// A model counts as dead when, for kSteps steps in a row, its gradient norm is exactly 0 or its loss is more
/// than kTimes that of a uniform guess, ln(vocabulary).
class DeadModelWatch {
 public:
  static constexpr int kSteps = 20;
  static constexpr double kTimes = 2.0;

  explicit DeadModelWatch(std::int64_t vocab_size);
  /// After every step. Returns a warning when the model has been dead for kSteps steps, and again when it has
  /// been so for ten times as many as at the last one.
  std::optional<std::string> look(std::int64_t step, double loss, double grad_norm);

 private:
  double most_loss_;
  std::int64_t dead_steps_ = 0, warn_at_ = kSteps;
};

}  // namespace farskip
