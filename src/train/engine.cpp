#include "farskip/train/engine.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

namespace farskip {
namespace {

void bind_all(Executor& executor, const TensorMap& tensors, std::string (*name)(std::string_view)) {
  for (const auto& [parameter, tensor] : tensors)
    if (const std::string external = name(parameter); executor.has_external(external))
      executor.bind(external, tensor.view());
}

std::string same_name(std::string_view parameter) {
  return std::string(parameter);
}

TensorView view_of(const std::vector<std::int32_t>& values) {
  return {const_cast<std::int32_t*>(values.data()), DType::i32,
          Shape{static_cast<std::int64_t>(values.size())}};
}
TensorView view_of(std::span<float> values) {
  return {values.data(), DType::f32, Shape{static_cast<std::int64_t>(values.size())}};
}

void bind_batch(Executor& executor, const Batch& batch) {
  executor.bind("tokens", view_of(batch.tokens));
  if (executor.has_external("targets")) executor.bind("targets", view_of(batch.targets));
  if (executor.has_external("document_start")) executor.bind("document_start", view_of(batch.document_start));
}

BatchLoss read_loss(const Executor& executor) {
  BatchLoss loss;
  loss.loss_sum = *executor.output("loss_sum").as<float>();
  loss.num_correct = *executor.output("num_correct").as<std::int32_t>();
  for (const Output& o : executor.graph().outputs()) {
    if (o.name == "balance_loss") loss.balance_loss = *executor.output(o.name).as<float>();
    if (!o.name.starts_with("expert_offsets.")) continue;
    const TensorView offsets = executor.output(o.name);
    const auto* at = offsets.as<std::int32_t>();
    const std::int64_t experts = offsets.num_elements() - 1;
    std::int32_t busiest = 0;
    for (std::int64_t e = 0; e < experts; ++e) busiest = std::max(busiest, at[e + 1] - at[e]);
    if (at[experts] > 0)
      loss.load_max_over_mean = std::max(
          loss.load_max_over_mean, static_cast<double>(busiest) * static_cast<double>(experts) / at[experts]);
  }
  return loss;
}

void fill_zero(TensorMap& tensors) {
  for (auto& [name, tensor] : tensors) std::memset(tensor.bytes().data(), 0, tensor.bytes().size());
}

}  // namespace

std::unique_ptr<Executor> compile(Graph graph, Arena& arena, const PipelineOptions& options,
                                  const Logger& logger) {
  graph = run_pipeline(std::move(graph), options, logger);
  Plan plan = make_serial_plan(graph, cpu_workspace);
  return std::make_unique<Executor>(std::move(graph), std::move(plan), cpu_kernel_table(), arena);
}

InferenceEngine::InferenceEngine(ModelConfig config, LayerGraph layers, const TensorMap& weights,
                                 Arena& arena, Logger logger)
    : config_(std::move(config)),
      layers_(std::move(layers)),
      weights_(weights),
      logger_(std::move(logger)),
      arena_(arena) {}

Executor& InferenceEngine::executor(std::int64_t batch, std::int64_t sequence_length, bool logits,
                                    bool document_mask) {
  std::unique_ptr<Executor>& e = executors_[{batch, sequence_length, logits, document_mask}];
  if (!e) {
    LowerOptions options;
    options.batch = batch;
    options.sequence_length = sequence_length;
    options.logits = logits;
    options.document_mask = document_mask;
    e = compile(lower(config_, layers_, options), arena_, {}, logger_);
    bind_all(*e, weights_, same_name);
  }
  return *e;
}

BatchLoss InferenceEngine::loss(const Batch& batch, std::int64_t sequence_length) {
  const auto sequences = static_cast<std::int64_t>(batch.tokens.size()) / sequence_length;
  Executor& e = executor(sequences, sequence_length, false, !batch.document_start.empty());
  bind_batch(e, batch);
  e.run();
  return read_loss(e);
}

TensorView InferenceEngine::logits(std::span<const std::int32_t> tokens, std::int64_t sequence_length) {
  Executor& e =
      executor(static_cast<std::int64_t>(tokens.size()) / sequence_length, sequence_length, true, false);
  const std::vector<std::int32_t> copy(tokens.begin(), tokens.end());
  e.bind("tokens", view_of(copy));
  e.run();
  return e.output("logits");
}

TrainEngine::TrainEngine(const ModelConfig& config, const LayerGraph& layers, TensorMap& weights,
                         const TrainEngineOptions& options, Arena& arena, const Logger& logger)
    : optimizer_(options.optimizer), weights_(weights), arena_(arena) {
  LowerOptions lowering;
  lowering.batch = options.micro_batch;
  lowering.sequence_length = options.sequence_length;
  lowering.balance_loss = options.balance_loss;
  lowering.document_mask = options.document_mask;
  const std::vector<ParameterSpec> specs = list_parameters(config);
  first_ =
      compile(build_micro_batch_graph(config, layers, lowering, false), arena_, options.pipeline, logger);
  if (options.accumulate)
    next_ =
        compile(build_micro_batch_graph(config, layers, lowering, true), arena_, options.pipeline, logger);
  update_ = compile(build_update_graph(specs, optimizer_), arena_, options.pipeline, logger);

  gradients_ = make_parameter_tensors(specs);
  first_moments_ = make_parameter_tensors(specs);
  second_moments_ = make_parameter_tensors(specs);
  fill_zero(first_moments_);
  fill_zero(second_moments_);
  for (Executor* e : {first_.get(), next_.get(), update_.get()}) {
    if (e == nullptr) continue;
    bind_all(*e, weights_, same_name);
    bind_all(*e, gradients_, gradient_name);
  }
  bind_all(*update_, first_moments_, first_moment_name);
  bind_all(*update_, second_moments_, second_moment_name);
}

BatchLoss TrainEngine::micro_batch(const Batch& batch, float loss_scale, float balance_scale, bool first) {
  FARSKIP_CHECK(first || next_, "this engine was made for one micro-batch a step");
  Executor& e = first ? *first_ : *next_;
  std::array<float, 2> scales{loss_scale, balance_scale};
  bind_batch(e, batch);
  e.bind(kLossScale, view_of(std::span(scales).first(1)));
  if (e.has_external(kBalanceScale)) e.bind(kBalanceScale, view_of(std::span(scales).last(1)));
  e.run(times_);
  return read_loss(e);
}

float TrainEngine::update(double learning_rate, std::int64_t step) {
  const auto t = static_cast<double>(step);
  std::array<float, 3> hyper{static_cast<float>(learning_rate),
                             static_cast<float>(1.0 / (1.0 - std::pow(optimizer_.beta1, t))),
                             static_cast<float>(1.0 / (1.0 - std::pow(optimizer_.beta2, t)))};
  update_->bind(kHyper, view_of(std::span(hyper)));
  update_->run(times_);
  return *update_->output("grad_norm").as<float>();
}

MemoryReport TrainEngine::memory() const {
  return {total_bytes(weights_), total_bytes(gradients_),
          total_bytes(first_moments_) + total_bytes(second_moments_), arena_.size()};
}

}  // namespace farskip
