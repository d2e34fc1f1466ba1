// SPDX-License-Identifier: Apache-2.0
#include "farskip/engine/program_runner.h"

#include <algorithm>

#include "passes/join_micro_batches.h"

namespace farskip {

void Stage::set(std::string_view name, const TensorView& values) {
  if (!executor_->has_external(name)) return;
  Device& device = executor_->device();
  auto it = inputs_.find(name);
  if (it == inputs_.end() || it->second.bytes != values.num_bytes()) {
    it = inputs_.insert_or_assign(std::string(name), allocate_on(device, values.num_bytes())).first;
    executor_->bind(name, {it->second.memory.get(), values.dtype, values.shape});
  }
  device.copy_in(it->second.memory.get(), values.data, values.num_bytes());
}

void Stage::set_batch(const Batch& batch, int number) {
  const auto set_values = [&](std::string_view input, const std::vector<std::int32_t>& values) {
    // Only read from.
    set(micro_batch_name(input, number), {const_cast<std::int32_t*>(values.data()), DType::i32,
                                          Shape{static_cast<std::int64_t>(values.size())}});
  };
  set_values("tokens", batch.tokens);
  set_values("targets", batch.targets);
  set_values("document_start", batch.document_start);
  for (const auto& [input, tensor] : batch.objective_inputs)
    set(micro_batch_name(input, number), tensor.view());
}

void Stage::set_scales(float loss_scale, float balance_scale) {
  set(kLossScale, {&loss_scale, DType::f32, Shape{1}});
  set(kBalanceScale, {&balance_scale, DType::f32, Shape{1}});
}

ProgramRunner::ProgramRunner(Context context, std::vector<std::shared_ptr<const States>> states,
                             RunnerOptions options)
    : context_(std::move(context)), states_(std::move(states)), options_(std::move(options)) {
  std::erase(states_, nullptr);
  // Graphs of other ranks differ in the sizes of shards.
  if (context_.world().rank() != 0) options_.pipeline.dump_folder.clear();
}

void ProgramRunner::share(std::string_view external, const TensorView& view) {
  shared_.insert_or_assign(std::string(external), view);
}

namespace {

/// The transports of a plan take so long by themselves.
double seconds_of_transports(const Graph& graph, const CostTable& costs) {
  const NodeSeconds seconds = costs.estimate(graph);
  double sum = 0;
  for (std::size_t n = 0; n < seconds.size(); ++n)
    if (graph.nodes()[n].op->collective) sum += seconds[n];
  return sum;
}

}  // namespace

Stage& ProgramRunner::stage(const StageKey& key, const std::function<PassPipeline()>& pipeline,
                            const PlanOptions& plan) {
  auto found = stages_.find(key);
  if (found == stages_.end()) {
    if (stages_.size() == kMostStages) {
      const auto oldest = std::min_element(stages_.begin(), stages_.end(), [](const auto& a, const auto& b) {
        return a.second.last_use_ < b.second.last_use_;
      });
      past_exposed_seconds_ += oldest->second.executor().exposed_seconds();
      stages_.erase(oldest);
    }
    std::unique_ptr<Executor> executor = make_executor(pipeline(), plan);
    const double transports =
        plan.costs == nullptr ? 0.0 : seconds_of_transports(executor->graph(), *plan.costs);
    found = stages_.emplace(key, Stage(std::move(executor), transports)).first;
  }
  found->second.last_use_ = num_runs_;
  return found->second;
}

// Own rows of a tensor are part of its memory: where a graph sums into a shard or gathers from one, nothing
// is copied.
std::unique_ptr<Executor> ProgramRunner::make_executor(PassPipeline pipeline, const PlanOptions& plan) const {
  std::vector<StateSpec> specs;
  for (const auto& states : states_)
    specs.insert(specs.end(), states->specs().begin(), states->specs().end());
  pipeline.last.push_back(gather_pass(specs, context_.mesh.position()));
  std::unique_ptr<Executor> executor = compile(pipeline, context_, options_.pipeline, plan, options_.align);
  for (const auto& states : states_) states->bind(*executor);
  for (const auto& [name, view] : shared_)
    if (executor->has_external(name)) executor->bind(name, view);
  return executor;
}

void ProgramRunner::run(Stage& stage) {
  ++num_runs_;
  transport_seconds_ += stage.transport_seconds_;
  if (context_.heartbeat != nullptr) context_.heartbeat->beat();
  if (!observer_) return stage.executor_->run();
  std::vector<StepTime> times;
  stage.executor_->run(&times);
  observer_(stage.executor(), times);
}

TensorView ProgramRunner::read(const Stage& stage, std::string_view output) {
  if (context_.device()->shares_host_memory()) return stage.executor().output(output);
  const HeartbeatWait wait(context_.heartbeat, "the outputs of a run");
  output_ = stage.read(output);
  return output_.view();
}

double ProgramRunner::exposed_seconds() const {
  double seconds = past_exposed_seconds_;
  for (const auto& [key, stage] : stages_) seconds += stage.executor().exposed_seconds();
  return seconds;
}

std::string ProgramRunner::collective_orders() const {
  std::string text;
  for (const auto& [key, stage] : stages_) text += collective_order(stage.graph(), stage.executor().plan());
  return text;
}

void ProgramRunner::clear() {
  past_exposed_seconds_ = exposed_seconds();
  stages_.clear();
}

}  // namespace farskip
