// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a distillation run is beside a training run: its teacher, the terms it minimises, what it reports, and
// when it stops.

#include <optional>

#include "distill/distill_objective.h"
#include "distill/freeze.h"
#include "distill/kept_teacher.h"
#include "distill/run_objective.h"

namespace farskip {

class Distillation final : public RunObjective {
 public:
  /// `student`: with its final wiring. `states`: its TrainingProgram::weight_states with what the run
  /// freezes, which are filled with those that the run begins with. Collective. Errors: UsageError where
  /// teacher and student do not fit.
  Distillation(const RunConfig& config, const ModelConfig& student, States& states, const Context& context);

  const std::set<std::string>& frozen() const { return frozen_; }
  const std::shared_ptr<const StepObjective>& objective() const { return objective_; }
  /// Of the forward on held-out text; none with a cache: then the student runs alone.
  std::shared_ptr<const StepObjective> validation_objective() const override { return validation_; }
  void add_to(TrainingOptions& options) const override;
  /// They are there, since what the teacher shares depends on them; distill.fold changes them.
  void fill_weights(States& states) const override;

  /// The student as it is wired in step `step` (from 0): in a curriculum not in all its layers yet.
  std::optional<LayerGraph> layers_at(std::int64_t step) const override;
  /// In a local stage something else than behind it.
  std::shared_ptr<const StepObjective> objective_at(std::int64_t step) const override;
  /// After a resume: UsageError if a tensor that the teacher shares was trained before.
  void check_weights(const States& states) const override;

  /// After a resume: forgets those of the checkpoint's numbers that compare with nothing under the settings
  /// of now, since they were measured on other text or by another metric.
  void forget_old_numbers(const RunSettings& saved, const RunSettings& now,
                          RunNumbers& numbers) const override;
  /// Held-out losses of the teacher and of the student as it was converted: what conversion costs.
  void record_baseline(const Validate& validate, InferenceEngine& student, RunNumbers& numbers) override;
  void complete(std::vector<Batch>& batches, std::int64_t step) override;
  void describe(const BatchLoss& loss, double counted, StepMetrics& m) const override;
  void describe_validation(const Evaluation& e, const RunNumbers& numbers, StepMetrics& m) const override;
  bool looks_at(std::int64_t step) const override;
  /// An evaluation whose metric is not finite does not count.
  bool observe(std::int64_t step, const Evaluation& e, RunNumbers& numbers) const override;
  bool over(const RunNumbers& numbers) const override;

 private:
  double metric_value(const Evaluation& e) const;
  void share_frozen(Teacher& teacher, const SafetensorsFolder& folder, const States& states);

  RunConfig run_;
  DistillConfig config_;
  ModelConfig student_;
  Context context_;
  std::set<std::string> frozen_;
  std::shared_ptr<const StepObjective> objective_, validation_;
  std::shared_ptr<const DistillObjective> live_;      // objective_, where the teacher is in the graph
  std::map<std::string, std::string> shared_hashes_;  // of tensors that are the teacher's too
  std::optional<EarlyStopping> early_stopping_;
  std::unique_ptr<KeptTeacher> kept_;  // with a cache
};

}  // namespace farskip
