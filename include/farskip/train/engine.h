#pragma once
// A model ready to run on this machine: weights, the graphs of a step turned into plans, one arena.

#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "farskip/base/log.h"
#include "farskip/passes/pipeline.h"
#include "farskip/runtime/executor.h"
#include "farskip/train/step_graphs.h"
#include "farskip/train/weights.h"

namespace farskip {

/// Tokens of some sequences of equal length, as the graphs want them.
struct Batch {
  std::vector<std::int32_t> tokens, targets;  // [B*S]; target -1: not counted
  std::vector<std::int32_t> document_start;   // [B*S] or empty
};

struct BatchLoss {
  double loss_sum = 0;            // Σ over counted tokens, nats
  std::int64_t num_correct = 0;   // counted tokens whose target has the largest logit
  double balance_loss = 0;        // Σ over layers and sequences
  double load_max_over_mean = 0;  // largest over layers: rows of the busiest expert over the mean
};

/// Graph → passes → serial plan → executor.
std::unique_ptr<Executor> compile(Graph graph, Arena& arena, const PipelineOptions& options,
                                  const Logger& logger);

/// Bytes that a run takes above the program itself.
struct MemoryReport {
  std::size_t weights = 0, gradients = 0, moments = 0, arena = 0;
  std::size_t snapshot = 0;  // copy that an asynchronous save writes from
  std::size_t total() const { return weights + gradients + moments + arena + snapshot; }
};

/// Forward-only use of a model (evaluation, logits). Plans are made on first use of a batch shape. The arena
/// may serve other engines too: results in it are valid until any of them runs.
class InferenceEngine {
 public:
  InferenceEngine(ModelConfig config, LayerGraph layers, const TensorMap& weights, Arena& arena,
                  Logger logger);

  const ModelConfig& config() const { return config_; }
  BatchLoss loss(const Batch& batch, std::int64_t sequence_length);
  /// logits[B*S, V], valid until the next call.
  TensorView logits(std::span<const std::int32_t> tokens, std::int64_t sequence_length);

 private:
  Executor& executor(std::int64_t batch, std::int64_t sequence_length, bool logits, bool document_mask);

  ModelConfig config_;
  LayerGraph layers_;
  const TensorMap& weights_;
  Logger logger_;
  Arena& arena_;
  std::map<std::tuple<std::int64_t, std::int64_t, bool, bool>, std::unique_ptr<Executor>> executors_;
};

struct TrainEngineOptions {
  std::int64_t micro_batch = 1, sequence_length = 1;
  bool accumulate = false;  // more than one micro-batch a step
  bool document_mask = false;
  bool balance_loss = false;
  OptimizerConfig optimizer;
  PipelineOptions pipeline;
};

/// Training use: gradients and moments beside the weights.
class TrainEngine {
 public:
  TrainEngine(const ModelConfig& config, const LayerGraph& layers, TensorMap& weights,
              const TrainEngineOptions& options, Arena& arena, const Logger& logger);

  /// Forward and backward of one micro-batch. `first`: gradients are written, otherwise added to.
  BatchLoss micro_batch(const Batch& batch, float loss_scale, float balance_scale, bool first);
  /// Clip and AdamW with the 1-based step number of the moments. Returns the gradient norm before clipping;
  /// when that is not finite nothing was changed.
  float update(double learning_rate, std::int64_t step);

  const TensorMap& gradients() const { return gradients_; }
  TensorMap& first_moments() { return first_moments_; }
  TensorMap& second_moments() { return second_moments_; }
  MemoryReport memory() const;
  const Executor& micro_batch_executor() const { return *first_; }
  const Executor& update_executor() const { return *update_; }
  /// Seconds of each node of the last micro_batch() or update() call while set; nullptr turns it off.
  void record_times(std::vector<NodeTime>* times) { times_ = times; }

 private:
  OptimizerConfig optimizer_;
  TensorMap& weights_;
  TensorMap gradients_, first_moments_, second_moments_;
  Arena& arena_;
  std::unique_ptr<Executor> first_, next_, update_;
  std::vector<NodeTime>* times_ = nullptr;
};

}  // namespace farskip
