// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a training step minimises: the seam between the engine, which runs steps, and what they are about.

#include <memory>

#include "farskip/program/step_graphs.h"
#include "farskip/state/states.h"

namespace farskip {

struct Batch;  // engine/batch.h

/// Immutable; shared by the engines of a run.
class StepObjective {
 public:
  StepObjective() = default;
  StepObjective(const StepObjective&) = delete;
  StepObjective& operator=(const StepObjective&) = delete;
  virtual ~StepObjective() = default;

  /// The forward of one micro-batch of the model that is trained, with outputs and externals as
  /// forward_pipeline() has them. More outputs: those named "sum.<name>", [1], are summed over
  /// micro-batches and ranks (BatchLoss::sums), and so are the kDistillStats of "distill_stats".
  virtual PassPipeline forward(const Model& model, const LowerOptions& options,
                               const StepSharding& sharding) const = 0;
  /// Outputs beside "loss_sum" that are minimised with the same scale.
  virtual std::vector<std::string> terms() const { return {}; }
  /// Tensors of these graphs that do not belong to the trained model; may be nullptr.
  virtual const States* states() const { return nullptr; }
  /// What a run minimises in its first steps, where that is something else; it reads the same states.
  virtual std::shared_ptr<const StepObjective> first_stage() const { return nullptr; }
  /// Adds to a batch of random tokens, for measuring, whatever else the graphs read.
  virtual void complete_random_batch(Batch& /*batch*/) const {}
};

/// StepObjective::states, held with it; may be empty.
std::shared_ptr<const States> objective_states(const std::shared_ptr<const StepObjective>& objective);

/// The forward of an objective; without one, that of cross-entropy on the data.
PassPipeline objective_pipeline(const StepObjective* objective, const Model& model,
                                const LowerOptions& options, const StepSharding& sharding);

}  // namespace farskip
