// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a training step consists of: its graphs, and how often each runs.

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "farskip/program/objective.h"
#include "farskip/program/optimizer.h"

namespace farskip {

/// What a step computes, on each rank.
struct TrainingOptions {
  std::int64_t micro_batch = 1, sequence_length = 1;
  std::int64_t micro_batches = 1;  // of this rank in a step
  int in_flight = 1;               // of them at once in one graph; divides micro_batches
  int expert_chunks = 1;           // parts of the tokens whose routed rows travel one by one; 0: not chosen
                                   // yet (measure/measure.h), and a program takes one
  bool document_mask = false;
  bool balance_loss = false;
  Recompute recompute = Recompute::none;  // automatic: not chosen yet (measure/search.h), and nothing is
  OptimizerConfig optimizer;
  double average_decay = 0;    // of the running average of weights (ops::MovingAverage); 0: none is kept
  std::uint64_t seed = 0;      // of random rounding
  int zero = 0;                // LocalParameter::zero
  DType compute = DType::f32;  // or bf16: activations and what products read; state stays f32
  bool deterministic = true;   // false: kernels that do not repeat their bits may be taken
  std::optional<std::uint64_t> routed_rows_memory;  // bytes; absent: room for twice an even share
  std::shared_ptr<const StepObjective> objective;   // none: cross-entropy on the data
  std::set<std::string> frozen;                     // parameters that stay as they are, by name
};

/// How many routed rows one rank may send to one other, and what is done when a batch has more.
struct RoutedRowsPlan {
  std::int64_t even_rows = 0;       // if all experts were equally busy
  std::int64_t all_rows = 0;        // if every token chose experts of that rank
  std::int64_t max_rows = 0;        // in the usual plan
  std::int64_t fallback_batch = 0;  // sequences at once when that does not hold; 0: it always holds
  std::int64_t fallback_rows = 0;
  std::uint64_t bytes = 0;  // of routed activations that the usual plan keeps for the backward
};
/// UsageError when `routed_rows_memory` is too small for an even share of one sequence.
RoutedRowsPlan plan_routed_rows(const ModelConfig& config, const TrainingOptions& options, int expert_size);

/// Which micro-batch graph: sequences in it, routed rows that one rank may send to one other, micro-batches
/// in flight, gradients added to what is there, and summed over ranks.
struct MicroBatch {
  std::int64_t sequences = 1, max_rows = 0;
  int in_flight = 1;
  bool accumulate = false, reduce = false;
  auto operator<=>(const MicroBatch&) const = default;
};

/// The graphs of a step at one place of a mesh, for whoever runs, plans or measures them. A step runs its
/// micro-batches, then the update; a checkpoint needs the gather before it.
class TrainingProgram {
 public:
  /// UsageError: that of plan_routed_rows and local_parameters.
  TrainingProgram(Model model, TrainingOptions options, const MeshPosition& mesh);

  /// How often each micro-batch graph runs: all but the first add to what is there, and on several ranks the
  /// last one sums over them, or each (ZeRO-2).
  using Runs = std::map<MicroBatch, std::int64_t>;
  Runs micro_batches() const;
  /// The same where routed rows do not fit; empty where they always do. That is seldom, and takes little
  /// memory: routed rows travel in parts, and again for the backward, which recomputes everything.
  Runs fallback() const;
  bool is_fallback(const MicroBatch& kind) const;
  /// The same graph as micro-batch `number` of `count`, counted in runs of it.
  MicroBatch at(MicroBatch kind, std::int64_t number, std::int64_t count) const;

  PassPipeline micro_batch(const MicroBatch& kind) const;
  PassPipeline update() const;
  /// Without nodes where the update leaves nothing to gather.
  PassPipeline gather() const;
  /// What graphs read, made anew from each rank's own rows of the trained weights.
  PassPipeline publish() const;

  const Model& model() const { return model_; }
  const RoutedRowsPlan& routed_rows() const { return routed_rows_; }
  /// Of this rank; all of them, and those that are not frozen.
  const std::vector<LocalParameter>& parameters() const { return parameters_; }
  const std::vector<LocalParameter>& trained() const { return trained_; }
  const Optimizer& optimizer() const { return *optimizer_; }
  /// What its graphs read and write beside inputs: weights first (weight_states; of what is frozen only
  /// constant_states), then the rest.
  std::vector<StateSpec> weight_states() const;
  std::vector<StateSpec> training_states() const;
  /// The same parameters, otherwise wired.
  void rewire(LayerGraph layers) { model_.layers = std::move(layers); }
  /// Something else from now on.
  void minimise(std::shared_ptr<const StepObjective> objective) { options_.objective = std::move(objective); }

 private:
  Runs runs(MicroBatch kind, std::int64_t count) const;
  StepSharding sharding(std::int64_t max_rows, int least_chunks = 1) const;

  Model model_;
  TrainingOptions options_;
  MeshPosition mesh_;
  std::shared_ptr<const Optimizer> optimizer_;
  std::vector<LocalParameter> parameters_, trained_;
  RoutedRowsPlan routed_rows_;
};

}  // namespace farskip
