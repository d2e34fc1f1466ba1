// SPDX-License-Identifier: Apache-2.0
#include "farskip/engine/engine.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "farskip/comm/collective_errors.h"
#include "farskip/engine/devices.h"
#include "farskip/passes/reduce_gradients.h"
#include "farskip/schedule/list_scheduler.h"
#include "farskip/state/state_names.h"
#include "farskip/tensor/hash.h"

namespace farskip {
namespace {

HostTensor copy_rows(const HostTensor& tensor, std::int64_t first, std::int64_t count) {
  std::vector<std::int64_t> dims = tensor.shape().dims();
  const std::size_t row = dims[0] == 0 ? 0 : tensor.bytes().size() / static_cast<std::size_t>(dims[0]);
  dims[0] = count;
  HostTensor rows(tensor.dtype(), Shape(std::move(dims)));
  std::memcpy(rows.bytes().data(), tensor.bytes().data() + static_cast<std::size_t>(first) * row,
              rows.bytes().size());
  return rows;
}

/// Sequences [first, first + count) of a batch.
Batch part_of_batch(const Batch& batch, std::int64_t first, std::int64_t count, std::int64_t length) {
  const auto cut = [&](const std::vector<std::int32_t>& values) {
    if (values.empty()) return std::vector<std::int32_t>();
    return std::vector<std::int32_t>(values.begin() + first * length,
                                     values.begin() + (first + count) * length);
  };
  std::map<std::string, HostTensor> more;
  for (const auto& [name, tensor] : batch.objective_inputs)
    more.emplace(name, copy_rows(tensor, first * length, count * length));
  return {cut(batch.tokens), cut(batch.targets), cut(batch.document_start), std::move(more)};
}

}  // namespace

namespace {

// Weight gradients that wait for a window hold what they read; an order may take this much more than the
// serial one.
constexpr double kMemoryForOverlap = 1.3;

// What ranks know of a node may differ: the shards of ZeRO have other shapes on each. The order must not.
NodeSeconds agree_on_costs(const Graph& graph, const CostTable& costs, const Communicator& world) {
  NodeSeconds seconds = costs.estimate(graph);
  world.all_reduce(std::span(seconds));
  for (double& s : seconds) s /= world.size();
  return seconds;
}

/// The order of rank 0's plan on every rank. Collective.
std::vector<OrderedStep> share_order(const Plan& plan, const Communicator& world) {
  constexpr std::size_t fields = 5;
  std::vector<std::int64_t> numbers;
  for (const PlanStep& s : plan.steps)
    numbers.insert(numbers.end(),
                   {static_cast<std::int64_t>(s.node.index()), static_cast<std::int64_t>(s.kind),
                    s.portion.first, s.portion.count, s.portion.of});
  auto count = static_cast<std::int64_t>(numbers.size());
  world.broadcast(std::span(&count, 1), 0);
  numbers.resize(static_cast<std::size_t>(count));
  world.broadcast(std::span(numbers), 0);
  std::vector<OrderedStep> order;
  for (std::size_t i = 0; i < numbers.size(); i += fields)
    order.push_back({NodeId(static_cast<std::size_t>(numbers[i])),
                     static_cast<StepKind>(numbers[i + 1]),
                     {numbers[i + 2], numbers[i + 3], numbers[i + 4]}});
  return order;
}

// Memory steers the search, and shards of ZeRO differ in size: only one rank may choose the order.
Plan make_plan(const Graph& graph, const Device& device, const PlanOptions& options,
               const Communicator& world) {
  const WorkspaceRule workspace = workspace_rule(device);
  if (options.costs == nullptr) return make_serial_plan(graph, workspace, options.waits);
  const NodeSeconds seconds = agree_on_costs(graph, *options.costs, world);
  Plan plan;
  if (world.rank() == 0) plan = make_step_plan(graph, workspace, seconds, options.in_flight);
  return world.size() == 1 ? plan : make_plan(graph, workspace, share_order(plan, world));
}

}  // namespace

Plan make_step_plan(const Graph& graph, const WorkspaceRule& workspace, const NodeSeconds& seconds,
                    int in_flight) {
  const std::size_t serial = make_serial_plan(graph, workspace, Waits::late).live_bytes;
  const auto limit = static_cast<std::size_t>(kMemoryForOverlap * in_flight * static_cast<double>(serial));
  return make_overlapped_plan(graph, workspace, seconds, {.memory_limit = limit});
}

PipelineOptions pipeline_for(DeviceKind device, PipelineOptions options) {
  if (device == DeviceKind::cpu) options.skip.insert(std::string(kRowsInSlabs));
  return options;
}

std::unique_ptr<Executor> compile(const PassPipeline& pipeline, const Context& context,
                                  const PipelineOptions& options, PlanOptions plan_options, bool align) {
  const Device& device = *context.device();
  Graph graph = run_pipeline(pipeline, pipeline_for(device.kind(), options), context.logger);
  Plan plan = make_plan(graph, device, plan_options, context.world());
  return std::make_unique<Executor>(std::move(graph), std::move(plan), device.kernels(), *context.arena,
                                    RankContext{&context.mesh, context.heartbeat, align});
}

TrainEngine::TrainEngine(const Model& model, std::shared_ptr<States> states,
                         const TrainEngineOptions& options, const Context& context)
    : options_(options),
      context_(context),
      program_(model, options, context.mesh.position()),
      states_(std::move(states)),
      losses_(context.device()),
      hyper_(allocate_on(*context.device(), sizeof(Optimizer::Hyper))) {
  states_->add(program_.training_states());
  states_->fill_zero(Role::optimizer);
  compile_all();
  check_same_order();
}

void TrainEngine::rewire(const LayerGraph& layers) {
  if (layers == program_.model().layers) return;
  context_.mesh.forget_device_addresses();  // the arena may move
  program_.rewire(layers);
  past_exposed_seconds_ = exposed_seconds();
  runners_.clear();
  transports_.clear();
  update_.reset();
  gather_.reset();
  compile_all();
  check_same_order();
}

// Everything that a step may need, so that its memory is known before the first one.
void TrainEngine::compile_all() {
  for (const TrainingProgram::Runs& runs : {program_.micro_batches(), program_.fallback()})
    for (const auto& [kind, count] : runs) runner(kind);
  update_ = make_executor(program_.update(), plan_options());
  bind_states(*update_);
  note_transports(*update_);
  update_->bind(kHyper, {hyper_.memory.get(), DType::f32,
                         Shape{static_cast<std::int64_t>(std::tuple_size_v<Optimizer::Hyper>)}});
  gather_ = make_executor(program_.gather(), {});
  if (gather_->graph().nodes().empty())
    gather_.reset();
  else
    bind_states(*gather_);
}

std::unique_ptr<Executor> TrainEngine::make_executor(const PassPipeline& pipeline, PlanOptions plan) const {
  PipelineOptions options = options_.pipeline;
  if (world().rank() != 0)
    options.dump_folder.clear();  // graphs of other ranks differ in the sizes of shards
  return compile(pipeline, context_, options, plan, options_.align);
}

PlanOptions TrainEngine::plan_options() const {
  return {.waits = options_.overlap ? Waits::late : Waits::at_once,
          .costs = options_.overlap ? options_.costs.get() : nullptr,
          .in_flight = options_.in_flight};
}

BatchRunner& TrainEngine::runner(const MicroBatch& kind) {
  if (const auto it = runners_.find(kind); it != runners_.end()) return it->second;
  // The fallback in graph order, which takes the least memory: costs say nothing about its parts.
  const bool is_fallback = program_.is_fallback(kind);
  PlanOptions plan = plan_options();
  if (is_fallback) plan.costs = nullptr;
  auto executor = make_executor(program_.micro_batch(kind), plan);
  bind_states(*executor);
  if (!is_fallback) note_transports(*executor);
  return runners_.emplace(kind, BatchRunner(std::move(executor))).first->second;
}

// Own rows of a tensor are part of its memory: where a graph sums into a shard or gathers from one, nothing
// is copied.
void TrainEngine::bind_states(Executor& executor) const {
  states_->bind(executor);
  if (options_.objective && options_.objective->states() != nullptr)
    options_.objective->states()->bind(executor);
}

// A rank that calls another collective than its peers, or in another order, would hang all of them.
void TrainEngine::check_same_order() const {
  std::string text;
  for (const auto& [kind, runner] : runners_)
    text += collective_order(runner.executor().graph(), runner.executor().plan());
  text += collective_order(update_->graph(), update_->plan());
  const std::vector<std::string> hashes = all_gather_text(world(), hash_text(text));
  for (std::size_t r = 0; r < hashes.size(); ++r)
    FARSKIP_CHECK(hashes[r] == hashes[0], "ranks 0 and {} would run different collectives", r);
}

void TrainEngine::run(Executor& executor) {
  if (const auto it = transports_.find(&executor); it != transports_.end()) transport_seconds_ += it->second;
  if (!observer_) return executor.run();
  std::vector<StepTime> times;
  executor.run(&times);
  observer_(executor, times);
}

void TrainEngine::run_micro_batches(std::span<const Batch> batches, std::int64_t max_rows, int in_flight,
                                    float loss_scale, float balance_scale) {
  const auto step = static_cast<std::size_t>(in_flight);
  FARSKIP_CHECK(batches.size() % step == 0, "{} micro-batches, {} at once", batches.size(), step);
  for (std::size_t i = 0; i < batches.size(); i += step) {
    const auto sequences = static_cast<std::int64_t>(batches[i].tokens.size()) / options_.sequence_length;
    const bool last = i + step == batches.size();
    BatchRunner& r = runner({sequences, max_rows, in_flight, i > 0, last && world().size() > 1});
    for (std::size_t m = 0; m < step; ++m) r.set_batch(batches[i + m], static_cast<int>(m));
    r.set_scales(loss_scale, balance_scale);
    if (context_.heartbeat != nullptr) context_.heartbeat->beat();
    run(r.executor());
    losses_.keep(r.executor());
  }
}

BatchLoss TrainEngine::sum_over_ranks(const BatchLoss& loss, std::span<double> also_summed) const {
  BatchLoss sum = loss;
  std::vector<double> values{loss.loss_sum, loss.num_correct, loss.balance_loss, loss.num_overflows};
  for (const auto& [layer, rows] : loss.expert_rows) values.insert(values.end(), rows.begin(), rows.end());
  for (const auto& [name, value] : loss.sums) values.push_back(value);
  if (!context_.mesh.position().counts_sequences()) std::fill(values.begin(), values.end(), 0.0);
  values.insert(values.end(), also_summed.begin(), also_summed.end());
  {
    const HeartbeatWait wait(context_.heartbeat, "sums of a step");
    world().all_reduce(std::span(values));
  }
  auto at = values.begin();
  for (double* value : {&sum.loss_sum, &sum.num_correct, &sum.balance_loss, &sum.num_overflows})
    *value = *at++;
  for (auto& [layer, rows] : sum.expert_rows)
    for (double& value : rows) value = *at++;
  for (auto& [name, value] : sum.sums) value = *at++;
  for (double& value : also_summed) value = *at++;
  return sum;
}

// A GPU is waited for here, and in it transports for peers.
BatchLoss TrainEngine::read_losses() {
  const HeartbeatWait wait(context_.heartbeat, "the losses of a step");
  return losses_.read();
}

BatchLoss TrainEngine::compute_gradients(std::span<const Batch> batches, float loss_scale,
                                         float balance_scale, std::span<double> also_summed) {
  const std::vector<double> mine(also_summed.begin(), also_summed.end());
  run_micro_batches(batches, routed_rows().max_rows, options_.in_flight, loss_scale, balance_scale);
  own_loss_ = read_losses();
  BatchLoss loss = sum_over_ranks(own_loss_, also_summed);
  if (loss.num_overflows == 0) return loss;
  ++num_repeated_;
  std::vector<Batch> parts;
  for (const Batch& batch : batches)
    for (std::int64_t first = 0; first < options_.micro_batch; first += routed_rows().fallback_batch)
      parts.push_back(part_of_batch(batch, first, routed_rows().fallback_batch, options_.sequence_length));
  std::copy(mine.begin(), mine.end(), also_summed.begin());
  run_micro_batches(parts, routed_rows().fallback_rows, 1, loss_scale, balance_scale);
  own_loss_ = read_losses();
  loss = sum_over_ranks(own_loss_, also_summed);
  FARSKIP_CHECK(loss.num_overflows == 0, "routed rows do not fit the worst case");
  return loss;
}

void TrainEngine::launch_update(double learning_rate, std::int64_t step) {
  const Optimizer::Hyper hyper = program_.optimizer().hyper(learning_rate, step);
  context_.device()->copy_in(hyper_.memory.get(), hyper.data(), sizeof(hyper));
  run(*update_);
}

float TrainEngine::grad_norm() const {
  const HeartbeatWait wait(context_.heartbeat, "the gradient norm of a step");
  return update_->read_output("grad_norm").values<float>()[0];
}

float TrainEngine::update(double learning_rate, std::int64_t step) {
  launch_update(learning_rate, step);
  return grad_norm();
}

StepResult TrainEngine::step(std::span<const Batch> batches, float loss_scale, float balance_scale,
                             double learning_rate, std::int64_t step, std::span<double> also_summed) {
  if (world().size() > 1 || context_.device()->shares_host_memory()) {
    const BatchLoss loss = compute_gradients(batches, loss_scale, balance_scale, also_summed);
    if (!is_finite(loss)) return {loss, std::numeric_limits<float>::quiet_NaN(), false, false};
    const float norm = update(learning_rate, step);
    return {loss, norm, true, std::isfinite(norm)};
  }
  // One GPU alone does not stand still while the host reads the losses: the update does not need them.
  run_micro_batches(batches, routed_rows().max_rows, options_.in_flight, loss_scale, balance_scale);
  launch_update(learning_rate, step);
  own_loss_ = read_losses();
  const float norm = grad_norm();
  return {own_loss_, norm, is_finite(own_loss_), std::isfinite(norm)};
}

bool TrainEngine::is_finite(const BatchLoss& loss) const {
  double sum = loss.loss_sum + loss.balance_loss;
  if (options_.objective)
    for (const std::string& term : options_.objective->terms())
      if (const auto it = loss.sums.find(term.substr(term.find('.') + 1)); it != loss.sums.end())
        sum += it->second;
  return std::isfinite(sum);
}

void TrainEngine::gather_weights() {
  if (gather_) gather_->run();
}

MemoryReport bytes_by_use(std::span<const StateSpec> specs) {
  return {.weights = total_bytes(specs, Role::weight) + total_bytes(specs, Role::compute_copy) +
                     total_bytes(specs, Role::constant),
          .gradients = total_bytes(specs, Role::gradient),
          .moments = total_bytes(specs, Role::optimizer)};
}

MemoryReport TrainEngine::memory() const {
  MemoryReport memory = bytes_by_use(states_->specs());
  if (options_.objective && options_.objective->states() != nullptr)
    memory.weights += options_.objective->states()->num_bytes();
  memory.arena = context_.arena->size();
  return memory;
}

// How long the transports of a plan take by themselves, as the costs say.
void TrainEngine::note_transports(const Executor& executor) {
  if (!options_.costs) return;
  const NodeSeconds seconds = options_.costs->estimate(executor.graph());
  double& sum = transports_[&executor];
  for (std::size_t n = 0; n < seconds.size(); ++n)
    if (executor.graph().nodes()[n].op->collective) sum += seconds[n];
}

double TrainEngine::exposed_seconds() const {
  double seconds = past_exposed_seconds_ + update_->exposed_seconds();
  for (const auto& [kind, runner] : runners_) seconds += runner.executor().exposed_seconds();
  return seconds;
}

}  // namespace farskip
