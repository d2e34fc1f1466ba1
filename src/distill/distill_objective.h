// SPDX-License-Identifier: Apache-2.0
#pragma once
// Distillation as an objective: teacher and student in one graph.

#include <utility>
#include <vector>

#include "distill/teacher.h"
#include "farskip/config/run_config.h"
#include "farskip/program/objective.h"
#include "ops/distill_ops.h"

namespace farskip {

struct DistillTerms {
  ops::DistillLoss loss;
  HiddenLossConfig hidden_loss{};                               // of weight 0: not compared
  std::vector<std::pair<std::int64_t, std::int64_t>> hidden{};  // layers of student and teacher
  double router_agreement = 0.0;
  /// Each block of the student reads what the teacher's blocks have added to the stream, and is to add what
  /// the teacher's block adds; no block is trained for what comes after it. The models have the same layers.
  bool local = false;
};

/// The teacher's final hidden states are all that leaves it (and what else is compared); both heads are part
/// of the loss. Outputs beside those of a loss: "distill_stats", "sum.routing_flips.<layer>" where both
/// models have as many experts and choices, "sum.hidden_loss", "sum.router_agreement", "sum.local_loss". Over
/// ranks that share a vocabulary each compares its part of the logits; jsd and top_k need whole rows, so both
/// heads are put together there.
class DistillObjective final : public StepObjective {
 public:
  /// `states`: Teacher::states; nullptr where only plans are made.
  DistillObjective(DistillTerms terms, Teacher teacher, std::shared_ptr<const States> states,
                   std::shared_ptr<const StepObjective> first_stage = nullptr);

  PassPipeline forward(const Model& model, const LowerOptions& options,
                       const StepSharding& sharding) const override;
  std::vector<std::string> terms() const override;
  const States* states() const override { return states_.get(); }
  std::shared_ptr<const StepObjective> first_stage() const override { return first_stage_; }
  void complete_random_batch(Batch& batch) const override { add_hidden_factors(batch, 1.0); }
  /// Gives a batch what the graph multiplies the hidden loss by, where its weight is annealed.
  void add_hidden_factors(Batch& batch, double factor) const;

 private:
  Graph join(const Graph& student_graph, const Model& student_model, const LowerOptions& options,
             const StepSharding& sharding) const;
  using Values = std::map<std::string, ValueId, std::less<>>;
  void compare_streams(Graph& graph, const Values& values, std::int64_t sequence_length) const;
  void compare_contributions(Graph& graph, const Values& values, const LayerGraph& layers,
                             std::int64_t sequence_length) const;
  void compare_routers(Graph& graph, const Values& values, const ModelConfig& student) const;

  DistillTerms terms_;
  Teacher teacher_;
  std::shared_ptr<const States> states_;
  std::shared_ptr<const StepObjective> first_stage_;
};

/// f32[T], an input of graphs whose hidden loss is annealed: its factor in this step, for each token.
inline constexpr std::string_view kHiddenFactors = "hidden_factors";

/// Names of the inputs of a graph that has kept outputs instead of a teacher.
inline constexpr std::string_view kCachedIndices = "cached.indices";                // i32[T, K]
inline constexpr std::string_view kCachedLogProbs = "cached.log_probs";             // f32[T, K]
inline constexpr std::string_view kCachedLogTail = "cached.log_tail";               // f32[T]
inline constexpr std::string_view kCachedTargetLogProb = "cached.target_log_prob";  // f32[T]

/// The same with the teacher's outputs as inputs: only the student is in the graph. terms.loss.top_k is K.
class CachedDistillObjective final : public StepObjective {
 public:
  explicit CachedDistillObjective(ops::DistillLoss loss) : loss_(loss) {}
  PassPipeline forward(const Model& model, const LowerOptions& options,
                       const StepSharding& sharding) const override;
  void complete_random_batch(Batch& batch) const override;

 private:
  Graph add_loss(const Graph& student, const ModelConfig& config, const LowerOptions& options,
                 const MeshPosition& mesh) const;

  ops::DistillLoss loss_;
};

/// The teacher alone, its parameters under their own names (read_name()), with outputs under the names above
/// instead of a loss.
PassPipeline teacher_pipeline(const Teacher& teacher, const LowerOptions& options,
                              const StepSharding& sharding, const ops::KeepTopK& keep);

}  // namespace farskip
