// SPDX-License-Identifier: Apache-2.0
#pragma once
// A model ready to run on this machine: weights, the graphs of a step turned into plans, one arena.

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "farskip/engine/batch_runner.h"
#include "farskip/passes/pipeline.h"
#include "farskip/program/inference_program.h"
#include "farskip/program/training_program.h"
#include "farskip/runtime/context.h"
#include "farskip/runtime/executor.h"
#include "farskip/schedule/costs.h"
#include "farskip/state/weights.h"

namespace farskip {

/// How the order of a plan is chosen.
struct PlanOptions {
  Waits waits = Waits::at_once;      // of the serial plan
  const CostTable* costs = nullptr;  // set: an overlapped plan by these costs (schedule/list_scheduler.h)
  int in_flight = 1;                 // micro-batches whose activations may be alive at once
};
/// The overlapped plan of a training step by these costs, within the memory that training allows it.
Plan make_step_plan(const Graph& graph, const WorkspaceRule& workspace, const NodeSeconds& seconds,
                    int in_flight = 1);

/// Without the passes that are for other devices than this one.
PipelineOptions pipeline_for(DeviceKind device, PipelineOptions options);

/// Graph → passes → plan → executor. With costs and ranks, collective: rank 0 plans by the mean of what their
/// tables say, and all take its order.
///
/// The executor speaks to the context's mesh, which has to outlive it. `align`: RankContext's.
std::unique_ptr<Executor> compile(const PassPipeline& pipeline, const Context& context,
                                  const PipelineOptions& options, PlanOptions plan = {}, bool align = false);

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
  InferenceEngine(Model model, std::shared_ptr<const States> states, Context context,
                  std::shared_ptr<const StepObjective> objective = nullptr);
  InferenceEngine(const InferenceEngine&) = delete;  // executors speak to its mesh
  InferenceEngine& operator=(const InferenceEngine&) = delete;

  const ModelConfig& config() const { return model_.config; }
  const Mesh& mesh() const { return context_.mesh; }
  /// Makes the plan of loss() for batches of this shape, so that its memory is taken now. Collective.
  void prepare_loss(std::int64_t sequences, std::int64_t sequence_length, bool document_mask) {
    runner({sequences, sequence_length, HeadOutput::loss, document_mask});
  }
  BatchLoss loss(const Batch& batch, std::int64_t sequence_length);
  /// logits[B*S, V] f32 in host memory, valid until the next call.
  TensorView logits(std::span<const std::int32_t> tokens, std::int64_t sequence_length);
  /// Cross-entropy of each token's target in nats, 0 where it is not counted: f32[B*S] in host memory, valid
  /// until the next call.
  std::span<const float> token_losses(const Batch& batch, std::int64_t sequence_length);

 private:
  BatchRunner& runner(const EvaluationShape& shape);
  TensorView run_for(const std::string& output, BatchRunner& runner, const Batch& batch);

  Model model_;
  std::shared_ptr<const States> states_;
  Context context_;
  KeptLosses losses_;
  HostTensor output_;  // where the device does not share the host's memory
  std::shared_ptr<const StepObjective> objective_;
  std::map<EvaluationShape, BatchRunner> runners_;
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
  TrainEngine(const TrainEngine&) = delete;  // executors speak to its mesh
  TrainEngine& operator=(const TrainEngine&) = delete;

  /// Forward and backward of this rank's micro-batches of a step, gradients summed over ranks. Collective.
  /// Returns sums over all ranks; `also_summed` is summed over ranks in the same message. When routed rows do
  /// not fit anywhere, the step is repeated in smaller parts by all ranks.
  BatchLoss compute_gradients(std::span<const Batch> batches, float loss_scale, float balance_scale,
                              std::span<double> also_summed = {});
  /// Clip and AdamW with the 1-based step number of the moments. Returns the gradient norm before clipping;
  /// when that is not finite nothing was changed. Collective.
  float update(double learning_rate, std::int64_t step);
  /// Both. Without an update where the loss or the gradient norm is not finite; one GPU alone does not wait
  /// for the loss, and updates where only the loss is not finite. Collective.
  StepResult step(std::span<const Batch> batches, float loss_scale, float balance_scale, double learning_rate,
                  std::int64_t step, std::span<double> also_summed = {});

  /// Weights, gradients, optimizer. Gradients: of this rank's micro-batches until compute_gradients has
  /// summed them; then of the whole step, but with ZeRO only in the rows that this rank updates.
  const std::shared_ptr<States>& states() const { return states_; }
  /// To be called before all of the weights are read: with ZeRO a rank that computes in bf16 has only the
  /// rows that it updates of some. Collective.
  void gather_weights();

  /// From the next step on the model is wired like this; its parameters, gradients and moments stay.
  /// Collective.
  void rewire(const LayerGraph& layers);

  const std::vector<LocalParameter>& parameters() const { return program_.parameters(); }
  const RoutedRowsPlan& routed_rows() const { return program_.routed_rows(); }
  /// Steps that were repeated because routed rows did not fit.
  std::int64_t num_repeated() const { return num_repeated_; }
  /// This rank's part of the loss of the last step.
  const BatchLoss& own_loss() const { return own_loss_; }
  MemoryReport memory() const;
  /// Time in which this rank could do nothing but communicate, since the start.
  double exposed_seconds() const;
  /// What all transports since the start take by themselves, by the costs; 0 without costs.
  double transport_seconds() const { return transport_seconds_; }
  /// Called after each executed plan with the seconds of its steps; an empty function turns the measuring
  /// off.
  using Observer = std::function<void(const Executor&, const std::vector<StepTime>&)>;
  void observe(Observer observer) { observer_ = std::move(observer); }

 private:
  BatchRunner& runner(const MicroBatch& kind);
  /// Their losses are kept in losses_.
  void run_micro_batches(std::span<const Batch> batches, std::int64_t max_rows, int in_flight,
                         float loss_scale, float balance_scale);
  void launch_update(double learning_rate, std::int64_t step);
  BatchLoss read_losses();
  float grad_norm() const;
  bool is_finite(const BatchLoss& loss) const;
  BatchLoss sum_over_ranks(const BatchLoss& loss, std::span<double> also_summed) const;
  void bind_states(Executor& executor) const;
  void run(Executor& executor);
  void compile_all();
  void check_same_order() const;
  void note_transports(const Executor& executor);
  std::unique_ptr<Executor> make_executor(const PassPipeline& pipeline, PlanOptions plan) const;
  const Communicator& world() const { return context_.world(); }
  PlanOptions plan_options() const;

  TrainEngineOptions options_;
  Context context_;
  TrainingProgram program_;
  std::shared_ptr<States> states_;
  KeptLosses losses_;
  BatchLoss own_loss_;
  std::map<MicroBatch, BatchRunner> runners_;
  std::unique_ptr<Executor> update_;
  std::unique_ptr<Executor> gather_;  // of what the update leaves behind; may be none
  DeviceBuffer hyper_;
  std::int64_t num_repeated_ = 0;
  std::map<const Executor*, double> transports_;
  double transport_seconds_ = 0, past_exposed_seconds_ = 0;
  Observer observer_;
};

}  // namespace farskip
