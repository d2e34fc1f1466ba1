// SPDX-License-Identifier: Apache-2.0
#include "farskip/program/training_program.h"

#include <algorithm>

#include "state/state_names.h"

namespace farskip {

RoutedRowsPlan plan_routed_rows(const ModelConfig& config, const TrainingOptions& options, int expert_size) {
  RoutedRowsPlan plan;
  if (expert_size == 1 || config.moe.num_experts == 0) return plan;
  // Of a row: what the expert reads, gate and up, and the weight; the rest is computed again.
  const std::int64_t row_bytes = (config.hidden_size + 2 * config.moe.expert_size) *
                                     static_cast<std::int64_t>(dtype_size(options.compute)) +
                                 static_cast<std::int64_t>(sizeof(float));
  const std::int64_t layers = std::count(config.moe_layers.begin(), config.moe_layers.end(), true);
  const std::int64_t bytes_per_row = layers * expert_size * row_bytes;
  const std::int64_t per_sequence = options.sequence_length * config.moe.top_k;
  const std::int64_t all = options.micro_batch * per_sequence;
  plan.all_rows = all;
  plan.even_rows = (all + expert_size - 1) / expert_size;
  plan.max_rows = std::min(all, 2 * plan.even_rows);
  if (options.routed_rows_memory) {
    plan.max_rows = std::min(all, static_cast<std::int64_t>(*options.routed_rows_memory) / bytes_per_row);
    const std::int64_t least = (per_sequence + expert_size - 1) / expert_size;
    if (plan.max_rows < least)
      throw UsageError(fmt::format(
          "schedule.routed_rows_memory is {} bytes; of one sequence of {} tokens the {} rows from one of {} "
          "ranks to each other take {} bytes over {} layers where experts are equally busy: allow at least "
          "that, or use auto",
          *options.routed_rows_memory, options.sequence_length, least, expert_size, least * bytes_per_row,
          layers));
  }
  plan.bytes = static_cast<std::uint64_t>(plan.max_rows * bytes_per_row);
  if (plan.max_rows == all) return plan;
  plan.fallback_batch = std::max<std::int64_t>(1, plan.max_rows / per_sequence);
  while (options.micro_batch % plan.fallback_batch != 0) --plan.fallback_batch;
  plan.fallback_rows = plan.fallback_batch * per_sequence;
  return plan;
}

namespace {

std::vector<LocalParameter> without_frozen(std::vector<LocalParameter> parameters,
                                           const std::set<std::string>& frozen) {
  std::erase_if(parameters,
                [&](const LocalParameter& p) { return !p.spec.is_trained || frozen.contains(p.spec.name); });
  return parameters;
}

}  // namespace

TrainingProgram::TrainingProgram(Model model, TrainingOptions options, const MeshPosition& mesh)
    : model_(std::move(model)),
      options_(std::move(options)),
      mesh_(mesh),
      optimizer_(make_optimizer(options_.optimizer, options_.seed)),
      parameters_(
          local_parameters(list_parameters(model_.config), mesh, options_.zero,
                           [this](const ParameterSpec& spec) { return optimizer_->keeps_matrices(spec); })),
      trained_(without_frozen(parameters_, options_.frozen)),
      routed_rows_(plan_routed_rows(model_.config, options_, mesh.exchange_size())) {}

std::vector<StateSpec> TrainingProgram::weight_states() const {
  std::vector<LocalParameter> moving, frozen;
  for (const LocalParameter& p : parameters_)
    (options_.frozen.contains(p.spec.name) ? frozen : moving).push_back(p);
  std::vector<StateSpec> specs = farskip::weight_states(moving, options_.compute);
  for (StateSpec& constant : constant_states(frozen, options_.compute)) specs.push_back(std::move(constant));
  return specs;
}

std::vector<StateSpec> TrainingProgram::training_states() const {
  std::vector<StateSpec> specs;
  for (const LocalParameter& p : trained_) {
    const auto parameter = std::make_shared<LocalParameter>(p);
    const std::string& name = p.spec.name;
    specs.push_back({gradient_name(name), Role::gradient, DType::f32, parameter, p.zero >= 2});
    for (const std::string& kind : optimizer_->states(p.spec))
      specs.push_back(
          {state_name(kind, name), Role::optimizer, optimizer_->state_dtype(), parameter, true, kind});
    if (options_.average_decay > 0)
      specs.push_back({state_name(kAveraging, name), Role::optimizer, DType::f32, parameter, true,
                       std::string(kAveraging)});
  }
  return specs;
}

TrainingProgram::Runs TrainingProgram::runs(MicroBatch kind, std::int64_t count) const {
  Runs runs;
  for (std::int64_t i = 0; i < count; ++i) {
    ++runs[at(kind, i, count)];
  }
  return runs;
}

MicroBatch TrainingProgram::at(MicroBatch kind, std::int64_t number, std::int64_t count) const {
  kind.accumulate = number > 0;
  kind.reduce = mesh_.world_size > 1 && (options_.zero >= 2 || number + 1 == count);
  return kind;
}

TrainingProgram::Runs TrainingProgram::micro_batches() const {
  return runs({options_.micro_batch, routed_rows_.max_rows, options_.in_flight},
              options_.micro_batches / options_.in_flight);
}

TrainingProgram::Runs TrainingProgram::fallback() const {
  if (routed_rows_.fallback_batch == 0) return {};
  return runs({routed_rows_.fallback_batch, routed_rows_.fallback_rows},
              options_.micro_batches * options_.micro_batch / routed_rows_.fallback_batch);
}

bool TrainingProgram::is_fallback(const MicroBatch& kind) const {
  return kind.sequences == routed_rows_.fallback_batch && kind.max_rows == routed_rows_.fallback_rows;
}

StepSharding TrainingProgram::sharding(std::int64_t max_rows, int least_chunks) const {
  return {mesh_, options_.zero, max_rows, std::max(least_chunks, options_.expert_chunks)};
}

PassPipeline TrainingProgram::micro_batch(const MicroBatch& kind) const {
  LowerOptions lowering;
  lowering.batch = kind.sequences;
  lowering.sequence_length = options_.sequence_length;
  lowering.balance_loss = options_.balance_loss;
  lowering.document_mask = options_.document_mask;
  lowering.dtype = options_.compute;
  lowering.deterministic = options_.deterministic;
  MicroBatchKind how{kind.accumulate, kind.reduce, kind.in_flight, options_.recompute,
                     options_.objective.get()};
  if (!is_fallback(kind))
    return micro_batch_pipeline(model_, trained_, lowering, sharding(kind.max_rows), how);
  // A rank may get the rows of all: in parts, those of two at a time.
  const int most = std::min(static_cast<int>(ops::kMostRowParts), static_cast<int>(options_.sequence_length));
  const int parts = std::clamp(mesh_.expert_size / 2, 1, most);
  how.recompute = Recompute::full;
  how.sends_again = true;
  return micro_batch_pipeline(model_, trained_, lowering, sharding(kind.max_rows, parts), how);
}

PassPipeline TrainingProgram::update() const {
  return update_pipeline(trained_, sharding(0), optimizer_, options_.compute, options_.average_decay);
}

PassPipeline TrainingProgram::gather() const {
  return gather_pipeline(trained_, sharding(0), options_.compute);
}

PassPipeline TrainingProgram::publish() const {
  return publish_pipeline(trained_, sharding(0), options_.compute);
}

}  // namespace farskip
