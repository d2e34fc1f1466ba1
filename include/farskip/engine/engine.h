// SPDX-License-Identifier: Apache-2.0
#pragma once
// A model ready to run on this machine: weights, the graphs of a step turned into plans, one arena.

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "farskip/engine/program_runner.h"
#include "farskip/state/weights.h"

namespace farskip {

/// Bytes that a run takes above the program itself, in the memory where plans run; weights with their compute
/// copies and a teacher's.
struct MemoryReport {
  std::size_t weights = 0, gradients = 0, moments = 0, arena = 0;
  std::size_t snapshot = 0;  // copy that an asynchronous save writes from
  std::size_t total() const { return weights + gradients + moments + arena + snapshot; }
};

/// Counts states alone.
MemoryReport bytes_by_use(std::span<const StateSpec> specs);

/// Forward-only use of a model (evaluation, logits). Plans are made on first use of a batch shape. The arena
/// may serve other engines too: results in it are valid until any of them runs. Where experts are spread over
/// ranks, all of them call together, with batches of one shape; buffers are made for the worst routing. Plans
/// run on the arena's device and compute in the type of the states.
class InferenceEngine {
 public:
  /// `states`: with the model's weights, or with constants in their place.
  InferenceEngine(Model model, const std::shared_ptr<const States>& states, const Context& context,
                  std::shared_ptr<const StepObjective> objective = nullptr);

  const ModelConfig& config() const { return model_.config; }
  const Mesh& mesh() const { return runner_.context().mesh; }
  /// Makes the plan of loss() for batches of this shape, so that its memory is taken now. Collective.
  void prepare_loss(std::int64_t sequences, std::int64_t sequence_length, bool document_mask) {
    stage({sequences, sequence_length, HeadOutput::loss, document_mask});
  }
  BatchLoss loss(const Batch& batch, std::int64_t sequence_length);
  /// logits[B*S, V] f32 in host memory, valid until the next call.
  TensorView logits(std::span<const std::int32_t> tokens, std::int64_t sequence_length);
  /// Cross-entropy of each token's target in nats, 0 where it is not counted: f32[B*S] in host memory, valid
  /// until the next call.
  std::span<const float> token_losses(const Batch& batch, std::int64_t sequence_length);

 private:
  Stage& stage(const EvaluationShape& shape);
  Stage& run(const EvaluationShape& shape, const Batch& batch);

  Model model_;
  DType compute_;
  std::shared_ptr<const StepObjective> objective_;
  ProgramRunner runner_;
  KeptLosses losses_;
};

/// A program, and how it is run.
struct TrainEngineOptions : TrainingOptions {
  PipelineOptions pipeline;
  bool overlap = true;                     // collectives are waited for late; false: at once
  std::shared_ptr<const CostTable> costs;  // with overlap: the order is chosen by these
  bool align = false;  // all ranks meet before each collective (for measuring its transport alone)
};

/// What a whole step gives.
struct StepResult {
  BatchLoss loss;              // sums over all ranks
  float grad_norm = 0;         // before clipping; NaN where it was not asked for, as the loss is not finite
  bool loss_is_finite = true;  // with all terms that are minimised
  bool updated = true;         // false: parameters and moments are as they were
};

/// Training use: gradients and what the optimizer keeps beside the weights, all in the memory of the arena's
/// device.
class TrainEngine {
 public:
  /// `states`: TrainingProgram::weight_states at the mesh's position; their contents may come later. The
  /// others are added, what the optimizer keeps as zeros. Collective.
  TrainEngine(const Model& model, std::shared_ptr<States> states, const TrainEngineOptions& options,
              const Context& context);

  /// Forward and backward of this rank's micro-batches of a step, gradients summed over ranks. Collective.
  /// Returns sums over all ranks; `also_summed` is summed over ranks in the same message. When routed rows do
  /// not fit anywhere, the step is repeated in smaller parts by all ranks.
  BatchLoss compute_gradients(std::span<const Batch> batches, float loss_scale, float balance_scale,
                              std::span<double> also_summed = {});
  /// Does what the optimizer does, with the 1-based step number of its states. Returns the gradient norm
  /// before clipping; when that is not finite nothing was changed. Collective.
  float update(double learning_rate, std::int64_t step);
  /// Both, without an update where the loss or the gradient norm is not finite. A GPU gets the update behind
  /// the micro-batches at once: it finds out by itself whether it may change anything, and the host waits
  /// once. `meanwhile`: what the host does before that; it may still write to `also_summed`. Collective.
  StepResult step(std::span<const Batch> batches, float loss_scale, float balance_scale, double learning_rate,
                  std::int64_t step, std::span<double> also_summed = {},
                  const std::function<void()>& meanwhile = {});

  /// Weights, gradients, optimizer. Gradients: of this rank's micro-batches until compute_gradients has
  /// summed them; then of the whole step, but with ZeRO only in the rows that this rank updates.
  const std::shared_ptr<States>& states() const { return states_; }
  /// To be called before all of the weights are read: with ZeRO a rank that computes in bf16 has only the
  /// rows that it updates of some. Collective.
  void gather_weights();

  /// With TrainingOptions::average_decay: a running average begins with the weights that are there now.
  void begin_average();
  /// Then averages take the place of the trained weights, for evaluations and checkpoints, and the weights
  /// that of the averages; a second call takes that back, to the bit. Without them nothing. Collective.
  void exchange_average();

  /// From the next step on the model is wired like this; its parameters, gradients and moments stay.
  /// Collective.
  void rewire(const LayerGraph& layers);
  /// From the next step on this is minimised. It reads the same states beside the model's. Collective.
  void minimise(const std::shared_ptr<const StepObjective>& objective);

  const std::vector<LocalParameter>& parameters() const { return program_.parameters(); }
  const RoutedRowsPlan& routed_rows() const { return program_.routed_rows(); }
  /// Steps that were repeated because routed rows did not fit.
  std::int64_t num_repeated() const { return num_repeated_; }
  /// This rank's part of the loss of the last step.
  const BatchLoss& own_loss() const { return own_loss_; }
  MemoryReport memory() const;
  /// Time in which this rank could do nothing but communicate, since the start.
  double exposed_seconds() const { return runner_.exposed_seconds(); }
  /// What all transports since the start take by themselves, by the costs; 0 without costs.
  double transport_seconds() const { return runner_.transport_seconds(); }
  using Observer = ProgramRunner::Observer;
  void observe(Observer observer) { runner_.observe(std::move(observer)); }

 private:
  Stage& micro_batch(const MicroBatch& kind);
  Stage& update_stage();
  Stage& gather_stage();
  Stage& publish_stage();
  /// `launched` is called when all micro-batches of a step are, again where the step is repeated.
  BatchLoss run_batches(std::span<const Batch> batches, float loss_scale, float balance_scale,
                        std::span<double> also_summed, const std::function<void()>& launched);
  /// Their losses are kept in losses_.
  void run_micro_batches(std::span<const Batch> batches, std::int64_t max_rows, int in_flight,
                         float loss_scale, float balance_scale);
  void launch_update(double learning_rate, std::int64_t step);
  BatchLoss read_losses();
  float grad_norm();
  bool is_finite(const BatchLoss& loss) const;
  BatchLoss sum_over_ranks(const BatchLoss& loss, std::span<double> also_summed) const;
  void compile_all();
  void compile_anew();
  void check_same_order() const;
  const Context& context() const { return runner_.context(); }
  const Communicator& world() const { return context().world(); }
  PlanOptions plan_options() const;

  TrainEngineOptions options_;
  TrainingProgram program_;
  std::shared_ptr<States> states_;
  ProgramRunner runner_;
  KeptLosses losses_;
  DeviceBuffer fault_;  // kFault
  BatchLoss own_loss_;
  std::int64_t num_repeated_ = 0;
};

}  // namespace farskip
