// SPDX-License-Identifier: Apache-2.0
#pragma once
// Training steps of one model on any mesh of ranks that are threads.

#include <optional>

#include "farskip/engine/engine.h"
#include "infer/evaluate.h"
#include "passes/farskip.h"
#include "rank_graph.h"
#include "support/context.h"
#include "support/support.h"

namespace farskip::test {

struct Layout {
  int expert = 1, data = 1;
  int zero = 0;
  bool overlap = true;
  bool scheduled = false;  // ordered by measured costs
  int in_flight = 1;
  int chunks = 1;
  Recompute recompute = Recompute::none;
  int tensor = 1;  // above 1, `expert` is 1 or the same
  int ranks() const { return std::max(expert, tensor) * data; }
  /// That read sequences of their own.
  int readers() const { return ranks() / tensor; }
  std::string text() const {
    return fmt::format("expert {} x data {}, tensor {}{}{}, {} chunks", expert, data, tensor,
                       zero > 0 ? fmt::format(", ZeRO-{}", zero) : "", overlap ? "" : ", waits at once",
                       chunks);
  }
};

/// What is trained, whatever the layout.
struct Task {
  ModelConfig model;
  fs::path weights{};  // empty: random ones
  FarSkipMode wiring = FarSkipMode::off;
  std::int64_t steps = 3, global_batch = 24, micro_batch = 2, sequence_length = 16;
  bool document_mask = false, balance_loss = false;
  OptimizerName optimizer = OptimizerName::adamw;
  std::optional<std::uint64_t> routed_rows_memory{};
  std::optional<std::int32_t> only_token{};  // every token of every sequence
  int uncounted_every = 0;                   // of this many micro-batches in order, the last has no targets
};

/// A routed model of odd sizes, `config` in hub names (flow style); throws what reading it finds wrong.
ModelConfig read_model(const std::string& config);
ModelConfig small_model(std::int64_t experts, std::int64_t top_k, std::int64_t layers = 3);

struct StepNumbers {
  double loss = 0, correct = 0, balance = 0, norm = 0, load = 0;
  friend bool operator==(const StepNumbers&, const StepNumbers&) = default;
};

/// What a layout computes: numbers equal on all ranks, whole tensors.
struct Outcome {
  std::vector<StepNumbers> steps;
  TensorMap weights, first, second;  // Muon's momentum is among the first moments
  std::int64_t repeated = 0;
};

inline constexpr double kLearningRate = 1e-2;
/// The optimizer's eps: large beside the rounding of a gradient, so that a weight whose gradient is almost
/// nothing does not go up on one layout and down on another.
inline constexpr double kAdamEps = 1e-4;

TrainEngineOptions options_of(const Task& task, const Layout& layout);
/// Trains. Throws std::runtime_error if ranks disagree about a number, or replicas about a bit of a weight.
Outcome train_on(const Task& task, const Layout& layout);

}  // namespace farskip::test
