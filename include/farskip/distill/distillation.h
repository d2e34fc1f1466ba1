// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a distillation run is beside a training run: its teacher, the terms it minimises, what it reports, and
// when it stops.

#include <optional>

#include "farskip/checkpoint/resume_rules.h"
#include "farskip/distill/distill_objective.h"
#include "farskip/distill/early_stopping.h"
#include "farskip/distill/freeze.h"
#include "farskip/distill/kept_teacher.h"
#include "farskip/engine/step_metrics.h"
#include "farskip/infer/evaluate.h"

namespace farskip {

class Distillation {
 public:
  /// `student`: with its final wiring. `weights`: of local_parameters at the mesh's position; filled with
  /// those that the run begins with. Collective. Errors: UsageError where teacher and student do not fit.
  Distillation(const RunConfig& config, const ModelConfig& student,
               const std::vector<LocalParameter>& parameters, TensorMap& weights, const Context& context);

  const std::set<std::string>& frozen() const { return frozen_; }
  const std::shared_ptr<const StepObjective>& objective() const { return objective_; }
  /// Of the forward on held-out text; none with a cache: then the student runs alone.
  std::shared_ptr<const StepObjective> validation_objective() const { return kept_ ? nullptr : objective_; }

  /// With a cache, what a teacher's outputs are kept by; nullptr otherwise: then held-out losses of the
  /// student come with the teacher's.
  KeptTeacher* kept_teacher() const { return kept_.get(); }
  /// The student as it is wired in step `step` (from 0): in a curriculum not in all its layers yet.
  LayerGraph layers_at(std::int64_t step) const;
  /// After a resume: UsageError if a tensor that the teacher shares was trained before.
  void check_shared(const TensorMap& weights) const;

  /// After a resume: forgets those of the checkpoint's numbers that compare with nothing under the settings
  /// of now, since they were measured on other text or by another metric.
  static void forget_old_numbers(const RunSettings& saved, const RunSettings& now, RunNumbers& numbers);
  /// Held-out losses of the teacher and of the student as it was converted, before any training.
  void note_start(double student_loss, double teacher_loss, RunNumbers& numbers) const;
  void describe(const BatchLoss& loss, double counted, StepMetrics& m) const;
  void describe_validation(const Evaluation& e, const RunNumbers& numbers, StepMetrics& m) const;
  const std::optional<EarlyStopping>& early_stopping() const { return early_stopping_; }
  double metric_value(const Evaluation& e) const;

 private:
  void share_frozen(Teacher& teacher, const std::vector<LocalParameter>& parameters,
                    const TensorMap& weights);

  DistillConfig config_;
  ModelConfig student_;
  Context context_;
  std::set<std::string> frozen_;
  std::shared_ptr<const StepObjective> objective_;
  std::map<std::string, std::string> shared_hashes_;  // of tensors that are the teacher's too
  std::optional<EarlyStopping> early_stopping_;
  std::unique_ptr<KeptTeacher> kept_;  // with a cache
};

}  // namespace farskip
