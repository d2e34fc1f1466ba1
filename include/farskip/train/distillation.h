#pragma once
// What a distillation run is beside a training run: its teacher, the terms it minimises, what it reports, and
// when it stops.

#include <optional>

#include "farskip/config/run_config.h"
#include "farskip/train/distill_objective.h"
#include "farskip/train/freeze.h"
#include "farskip/train/metrics.h"
#include "farskip/train/teacher_cache.h"
#include "farskip/train/trainer.h"

namespace farskip {

/// Numbers that last over a resume (TrainingState::numbers).
using RunNumbers = std::map<std::string, double>;

/// Stops a run that makes no progress on a held-out metric. A look makes progress when it is better than the
/// best so far by more than `delta` of it.
class EarlyStopping {
 public:
  explicit EarlyStopping(const EarlyStoppingConfig& config) : config_(config) {}
  bool looks_at(std::int64_t step) const { return step % config_.every == 0; }
  HeldOutMetric metric() const { return config_.metric; }
  /// Returns whether this look made progress. Keeps its place in `numbers`: best, best_step, looks_without.
  bool look(std::int64_t step, double value, RunNumbers& numbers) const;
  bool over(const RunNumbers& numbers) const;

 private:
  EarlyStoppingConfig config_;
};

class Distillation {
 public:
  /// `student`: with its final wiring. `weights`: of local_parameters at the mesh's position; filled with
  /// those that the run begins with. Collective. Errors: UsageError where teacher and student do not fit.
  Distillation(const RunConfig& config, const ModelConfig& student,
               const std::vector<LocalParameter>& parameters, TensorMap& weights, const Mesh& mesh,
               Heartbeat& heartbeat, const Logger& logger);
  ~Distillation();

  const std::set<std::string>& frozen() const { return frozen_; }
  const std::shared_ptr<const StepObjective>& objective() const { return objective_; }
  /// Of the forward on held-out text; none with a cache: then the student runs alone.
  std::shared_ptr<const StepObjective> validation_objective() const { return cache_ ? nullptr : objective_; }

  /// With a cache: gives each batch what the teacher says of it, from the folder or from the teacher, in the
  /// same rounding. Collective.
  void add_teacher(std::vector<Batch>& batches);
  /// The student as it is wired in step `step` (from 0): in a curriculum not in all its layers yet.
  LayerGraph layers_at(std::int64_t step) const;
  /// After a resume: UsageError if a tensor that the teacher shares was trained before.
  void check_shared(const TensorMap& weights) const;

  /// With a cache: the teacher by itself, for its held-out loss. Otherwise nullptr: held-out losses of the
  /// student come with the teacher's.
  InferenceEngine* teacher_alone();
  /// Held-out losses of the teacher and of the student as it was converted, before any training.
  void note_start(double student_loss, double teacher_loss, RunNumbers& numbers) const;
  void describe(const BatchLoss& loss, double counted, StepMetrics& m) const;
  void describe_validation(const Evaluation& e, const RunNumbers& numbers, StepMetrics& m) const;
  const std::optional<EarlyStopping>& early_stopping() const { return early_stopping_; }
  double metric_value(const Evaluation& e) const;

 private:
  struct TeacherAlone;
  Teacher load_teacher() const;
  DistillTerms make_terms(const ModelConfig& teacher) const;
  void share_frozen(Teacher& teacher, const std::vector<LocalParameter>& parameters,
                    const TensorMap& weights);
  void open_cache();
  TeacherAlone& alone();
  std::vector<TeacherRecord> ask_teacher(const Batch& batch);

  DistillConfig config_;
  ModelConfig student_;
  Mesh mesh_;
  Heartbeat& heartbeat_;
  Logger logger_;
  std::int64_t sequence_length_, micro_batch_;
  bool document_mask_;
  std::set<std::string> frozen_;
  std::shared_ptr<const StepObjective> objective_;
  std::map<std::string, std::string> shared_hashes_;  // of tensors that are the teacher's too
  std::optional<EarlyStopping> early_stopping_;
  std::unique_ptr<TeacherCache> cache_;
  std::unique_ptr<TeacherAlone> alone_;  // with a cache, when it is first needed
};

}  // namespace farskip
