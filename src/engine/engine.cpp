// SPDX-License-Identifier: Apache-2.0
#include "farskip/engine/engine.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "comm/collective_errors.h"
#include "state/state_names.h"
#include "tensor/hash.h"

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

TrainEngine::TrainEngine(const Model& model, std::shared_ptr<States> states,
                         const TrainEngineOptions& options, const Context& context)
    : options_(options),
      program_(model, options, context.mesh.position()),
      states_(std::move(states)),
      runner_(context, {states_, objective_states(options.objective)}, {options.pipeline, options.align}),
      losses_(context.device()),
      fault_(allocate_on(*context.device(), sizeof(float))) {
  context.device()->fill_zero(fault_.memory.get(), fault_.bytes);
  runner_.share(kFault, {fault_.memory.get(), DType::f32, Shape{1}});
  states_->add(program_.training_states());
  states_->fill_zero(Role::optimizer);
  compile_all();
}

void TrainEngine::rewire(const LayerGraph& layers) {
  if (layers == program_.model().layers) return;
  program_.rewire(layers);
  compile_anew();
}

void TrainEngine::minimise(const std::shared_ptr<const StepObjective>& objective) {
  if (objective == options_.objective) return;
  FARSKIP_CHECK(objective->states() == options_.objective->states(), "an objective with states of its own");
  options_.objective = objective;
  program_.minimise(objective);
  compile_anew();
}

void TrainEngine::compile_anew() {
  context().mesh.forget_device_addresses();  // the arena may move
  runner_.clear();
  compile_all();
}

// Everything that a step may need, so that its memory is known before the first one.
void TrainEngine::compile_all() {
  for (const TrainingProgram::Runs& runs : {program_.micro_batches(), program_.fallback()})
    for (const auto& [kind, count] : runs) micro_batch(kind);
  update_stage();
  gather_stage();
  if (options_.average_decay > 0) publish_stage();
  check_same_order();
}

PlanOptions TrainEngine::plan_options() const {
  return {.waits = options_.overlap ? Waits::late : Waits::at_once,
          .costs = options_.overlap ? options_.costs.get() : nullptr,
          .in_flight = options_.in_flight};
}

Stage& TrainEngine::micro_batch(const MicroBatch& kind) {
  PlanOptions plan = plan_options();
  // The fallback in graph order, which takes the least memory: costs say nothing about its parts.
  if (program_.is_fallback(kind)) plan.costs = nullptr;
  return runner_.stage(
      kind, [&] { return program_.micro_batch(kind); }, plan);
}

Stage& TrainEngine::update_stage() {
  return runner_.stage(
      "update", [&] { return program_.update(); }, plan_options());
}

Stage& TrainEngine::gather_stage() {
  return runner_.stage("gather", [&] { return program_.gather(); }, {});
}

Stage& TrainEngine::publish_stage() {
  return runner_.stage("publish", [&] { return program_.publish(); }, {});
}

// A rank that calls another collective than its peers, or in another order, would hang all of them.
void TrainEngine::check_same_order() const {
  const std::vector<std::string> hashes = all_gather_text(world(), hash_text(runner_.collective_orders()));
  for (std::size_t r = 0; r < hashes.size(); ++r)
    FARSKIP_CHECK(hashes[r] == hashes[0], "ranks 0 and {} would run different collectives", r);
}

void TrainEngine::run_micro_batches(std::span<const Batch> batches, std::int64_t max_rows, int in_flight,
                                    float loss_scale, float balance_scale) {
  const auto step = static_cast<std::size_t>(in_flight);
  FARSKIP_CHECK(batches.size() % step == 0, "{} micro-batches, {} at once", batches.size(), step);
  for (std::size_t i = 0; i < batches.size(); i += step) {
    const auto sequences = static_cast<std::int64_t>(batches[i].tokens.size()) / options_.sequence_length;
    Stage& stage =
        micro_batch(program_.at({sequences, max_rows, in_flight}, static_cast<std::int64_t>(i / step),
                                static_cast<std::int64_t>(batches.size() / step)));
    for (std::size_t m = 0; m < step; ++m) stage.set_batch(batches[i + m], static_cast<int>(m));
    stage.set_scales(loss_scale, balance_scale);
    runner_.run(stage);
    losses_.keep(stage.executor());
  }
}

BatchLoss TrainEngine::sum_over_ranks(const BatchLoss& loss, std::span<double> also_summed) const {
  BatchLoss sum = loss;
  std::vector<double> values{loss.loss_sum, loss.num_correct, loss.balance_loss, loss.num_overflows};
  for (const auto& [layer, rows] : loss.expert_rows) values.insert(values.end(), rows.begin(), rows.end());
  for (const auto& [name, value] : loss.sums) values.push_back(value);
  if (!context().mesh.position().counts_sequences()) std::fill(values.begin(), values.end(), 0.0);
  values.insert(values.end(), also_summed.begin(), also_summed.end());
  {
    const HeartbeatWait wait(context().heartbeat, "sums of a step");
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
  const HeartbeatWait wait(context().heartbeat, "the losses of a step");
  return losses_.read();
}

BatchLoss TrainEngine::run_batches(std::span<const Batch> batches, float loss_scale, float balance_scale,
                                   std::span<double> also_summed, const std::function<void()>& launched) {
  run_micro_batches(batches, routed_rows().max_rows, options_.in_flight, loss_scale, balance_scale);
  launched();
  const std::vector<double> mine(also_summed.begin(), also_summed.end());
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
  launched();
  own_loss_ = read_losses();
  loss = sum_over_ranks(own_loss_, also_summed);
  FARSKIP_CHECK(loss.num_overflows == 0, "routed rows do not fit the worst case");
  return loss;
}

BatchLoss TrainEngine::compute_gradients(std::span<const Batch> batches, float loss_scale,
                                         float balance_scale, std::span<double> also_summed) {
  return run_batches(batches, loss_scale, balance_scale, also_summed, [] {});
}

void TrainEngine::launch_update(double learning_rate, std::int64_t step) {
  Optimizer::Hyper hyper = program_.optimizer().hyper(learning_rate, step);
  Stage& update = update_stage();
  update.set(kHyper, {hyper.data(), DType::f32, Shape{static_cast<std::int64_t>(hyper.size())}});
  runner_.run(update);
}

float TrainEngine::grad_norm() {
  const HeartbeatWait wait(context().heartbeat, "the gradient norm of a step");
  return update_stage().read("grad_norm").values<float>()[0];
}

float TrainEngine::update(double learning_rate, std::int64_t step) {
  launch_update(learning_rate, step);
  return grad_norm();
}

StepResult TrainEngine::step(std::span<const Batch> batches, float loss_scale, float balance_scale,
                             double learning_rate, std::int64_t step, std::span<double> also_summed,
                             const std::function<void()>& meanwhile) {
  bool first = true;
  const BatchLoss loss = run_batches(batches, loss_scale, balance_scale, also_summed, [&] {
    launch_update(learning_rate, step);
    if (std::exchange(first, false) && meanwhile) meanwhile();
  });
  const float norm = grad_norm();
  if (!is_finite(loss)) return {loss, std::numeric_limits<float>::quiet_NaN(), false, false};
  return {loss, norm, true, std::isfinite(norm)};
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
  if (Stage& gather = gather_stage(); !gather.graph().nodes().empty()) runner_.run(gather);
}

void TrainEngine::begin_average() {
  if (options_.average_decay == 0) return;
  for (const LocalParameter& p : program_.trained()) {
    const TensorView weight = states_->own_rows(p.spec.name);
    context().device()->copy_within(states_->own_rows(state_name(kAveraging, p.spec.name)).data, weight.data,
                                    weight.num_bytes());
  }
}

void TrainEngine::exchange_average() {
  if (options_.average_decay == 0) return;
  Device& device = *context().device();
  std::size_t most = 0;
  for (const LocalParameter& p : program_.trained())
    most = std::max(most, states_->own_rows(p.spec.name).num_bytes());
  const auto aside = device.allocate(most);
  for (const LocalParameter& p : program_.trained()) {
    const TensorView weight = states_->own_rows(p.spec.name),
                     average = states_->own_rows(state_name(kAveraging, p.spec.name));
    device.copy_within(aside.get(), weight.data, weight.num_bytes());
    device.copy_within(weight.data, average.data, weight.num_bytes());
    device.copy_within(average.data, aside.get(), weight.num_bytes());
  }
  if (Stage& publish = publish_stage(); !publish.graph().nodes().empty()) runner_.run(publish);
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
  memory.arena = context().arena->size();
  return memory;
}

}  // namespace farskip
