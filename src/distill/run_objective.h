// SPDX-License-Identifier: Apache-2.0
#pragma once
// The trainer does what every run does; a RunObjective answers what this run is about.

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "checkpoint/resume_rules.h"
#include "distill/early_stopping.h"
#include "engine/step_metrics.h"
#include "infer/evaluate.h"

namespace farskip {

/// The default is text alone.
class RunObjective {
 public:
  RunObjective() = default;
  RunObjective(const RunObjective&) = delete;
  RunObjective& operator=(const RunObjective&) = delete;
  virtual ~RunObjective() = default;

  /// Sets the objective of a step.
  virtual void add_to(TrainingOptions& /*options*/) const {}
  /// Of the forward on held-out text; nullptr: cross-entropy on the data.
  virtual std::shared_ptr<const StepObjective> validation_objective() const { return nullptr; }

  /// Fills the weights of a run that does not resume. Collective.
  virtual void fill_weights(States& states) const = 0;
  /// After a resume: forgets those of the checkpoint's numbers that compare with nothing under the settings
  /// of now.
  virtual void forget_old_numbers(const RunSettings& /*saved*/, const RunSettings& /*now*/,
                                  RunNumbers& /*numbers*/) const {}
  /// Before the first step, with the weights that it begins with: UsageError where they do not fit.
  virtual void check_weights(const States& /*states*/) const {}
  /// What held-out text says before any training. Collective.
  using Validate = std::function<Evaluation(InferenceEngine&)>;
  virtual void record_baseline(const Validate& /*validate*/, InferenceEngine& /*model*/,
                               RunNumbers& /*numbers*/) {}

  /// How the model is wired in step `step` (from 0); nothing: as it was configured.
  virtual std::optional<LayerGraph> layers_at(std::int64_t /*step*/) const { return std::nullopt; }
  /// What step `step` (from 0) minimises; nothing: what add_to() has set.
  virtual std::shared_ptr<const StepObjective> objective_at(std::int64_t /*step*/) const { return nullptr; }
  /// Adds what the graphs of step `step` (from 0) read beside tokens. Collective.
  virtual void complete(std::vector<Batch>& /*batches*/, std::int64_t /*step*/) {}
  virtual void describe(const BatchLoss& /*loss*/, double /*counted*/, StepMetrics& /*m*/) const {}

  virtual void describe_validation(const Evaluation& /*e*/, const RunNumbers& /*numbers*/,
                                   StepMetrics& /*m*/) const {}
  /// Whether it wants to see held-out text after this step, whatever the evaluation interval.
  virtual bool looks_at(std::int64_t /*step*/) const { return false; }
  /// Sees it. True: this is the best model so far.
  virtual bool observe(std::int64_t /*step*/, const Evaluation& /*e*/, RunNumbers& /*numbers*/) const {
    return false;
  }
  /// Held-out text has ended the run, in this process or before.
  virtual bool over(const RunNumbers& /*numbers*/) const { return false; }
};

}  // namespace farskip
