// SPDX-License-Identifier: Apache-2.0
#pragma once
// The one way in which graphs of a program come to run: compiled when first asked for, bound to the tensors
// that outlive them, given inputs, run, read.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "farskip/engine/batch.h"
#include "farskip/engine/compile.h"
#include "farskip/program/inference_program.h"
#include "farskip/program/training_program.h"
#include "farskip/state/states.h"

namespace farskip {

/// The key names a graph of a program: one of a kind by its shape, or the only one of its name.
using StageKey = std::variant<std::string, MicroBatch, EvaluationShape, std::vector<CachedRunShape>>;

/// A graph that is ready to run, with the buffers in device memory that its inputs are bound to.
class Stage {
 public:
  Stage(std::unique_ptr<Executor> executor, double transport_seconds)
      : executor_(std::move(executor)), transport_seconds_(transport_seconds) {}

  /// An input by name, from host memory; passed over where the graph has none of that name. Does not wait for
  /// earlier runs.
  void set(std::string_view name, const TensorView& values);
  /// `number`: of the micro-batches that are in flight at once.
  void set_batch(const Batch& batch, int number = 0);
  void set_scales(float loss_scale, float balance_scale);

  const Graph& graph() const { return executor_->graph(); }
  const Executor& executor() const { return *executor_; }
  HostTensor read(std::string_view output) const { return executor_->read_output(output); }

 private:
  friend class ProgramRunner;
  std::unique_ptr<Executor> executor_;
  double transport_seconds_;
  std::int64_t last_use_ = 0;
  // Bound once, when first set: binding again would make the executor resolve every address anew.
  std::map<std::string, DeviceBuffer, std::less<>> inputs_;
};

struct RunnerOptions {
  PipelineOptions pipeline{};
  bool align = false;  // all ranks meet before each collective (for measuring its transport alone)
};

/// The runner keeps the graphs used last. All of them share the context's arena: what one of them has
/// put out is valid until another one runs, be it of another runner.
class ProgramRunner {
 public:
  /// `states`: what graphs are bound to by the names of their externals; absent ones are passed over.
  ProgramRunner(Context context, std::vector<std::shared_ptr<const States>> states,
                RunnerOptions options = {});
  ProgramRunner(const ProgramRunner&) = delete;  // executors speak to its mesh
  ProgramRunner& operator=(const ProgramRunner&) = delete;

  /// Binds more of the externals of all graphs that are made from now on.
  void share(std::string_view external, const TensorView& view);
  /// The graph of this key; `pipeline` makes it where it is not there, and what it reads whole of states that
  /// are kept in parts is gathered (gather_pass). Valid until kMostStages others were
  /// asked for. Then collective, as compile() is.
  Stage& stage(const StageKey& key, const std::function<PassPipeline()>& pipeline, const PlanOptions& plan);
  /// On a GPU only launches.
  void run(Stage& stage);
  /// An output in host memory, valid until the next run or read.
  TensorView read(const Stage& stage, std::string_view output);

  /// Called after each run with the seconds of its steps; an empty function turns the measuring off.
  using Observer = std::function<void(const Executor&, const std::vector<StepTime>&)>;
  void observe(Observer observer) { observer_ = std::move(observer); }
  /// Time in which this rank could do nothing but communicate, in all runs so far.
  double exposed_seconds() const;
  /// All transports so far take so long by themselves, by the costs that plans were made by; 0 without costs.
  double transport_seconds() const { return transport_seconds_; }

  /// Its graphs call these collectives, in this order, the same on all ranks, or they would wait for ever.
  std::string collective_orders() const;
  /// Forgets all graphs.
  void clear();

  const Context& context() const { return context_; }

 private:
  static constexpr std::size_t kMostStages = 128;
  std::unique_ptr<Executor> make_executor(PassPipeline pipeline, const PlanOptions& plan) const;

  Context context_;
  std::vector<std::shared_ptr<const States>> states_;
  RunnerOptions options_;
  std::map<std::string, TensorView> shared_;
  std::map<StageKey, Stage> stages_;
  Observer observer_;
  HostTensor output_;  // where the device does not share the host's memory
  std::int64_t num_runs_ = 0;
  double transport_seconds_ = 0, past_exposed_seconds_ = 0;
};

}  // namespace farskip
