// SPDX-License-Identifier: Apache-2.0
#include "layouts.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "farskip/base/random.h"
#include "measure/measure.h"
#include "support/states.h"

namespace farskip::test {
namespace {

const Logger kQuiet(LogLevel::off);
constexpr std::uint64_t kSeed = 99;

void expect(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error(what);
}

/// Sequence `number` of all that are trained on: of its number alone.
void add_sequence(const Task& task, std::int64_t number, Batch& batch) {
  const auto length = static_cast<std::uint64_t>(task.sequence_length);
  const std::int64_t batch_number = number / task.micro_batch;
  const bool uncounted =
      task.uncounted_every > 0 && batch_number % task.uncounted_every == task.uncounted_every - 1;
  const auto token = [&](std::uint64_t i) {
    if (task.only_token) return *task.only_token;
    return static_cast<std::int32_t>(uniform_double(kSeed, static_cast<std::uint64_t>(number), i) *
                                     static_cast<double>(task.model.vocab_size));
  };
  std::int32_t start = 0;
  for (std::uint64_t i = 0; i < length; ++i) {
    batch.tokens.push_back(token(i));
    const bool skipped = uncounted || token(i + 1) % 7 == 3;
    batch.targets.push_back(skipped && !task.only_token ? -1 : token(i + 1));
    if (!task.document_mask) continue;
    if (token(i) % 5 == 0) start = static_cast<std::int32_t>(i);
    batch.document_start.push_back(start);
  }
}

/// Dealt out as the trainer does: in each part of a step `micro_batch` consecutive sequences a rank.
std::vector<Batch> batches_of(const Task& task, std::int64_t step, const Communicator& readers) {
  std::vector<Batch> batches;
  const std::int64_t parts = task.global_batch / (task.micro_batch * readers.size());
  for (std::int64_t part = 0; part < parts; ++part) {
    batches.emplace_back();
    const std::int64_t first =
        step * task.global_batch + (part * readers.size() + readers.rank()) * task.micro_batch;
    for (std::int64_t i = 0; i < task.micro_batch; ++i) add_sequence(task, first + i, batches.back());
  }
  return batches;
}

/// One rank's part of an outcome.
struct RankOutcome {
  std::vector<StepNumbers> steps;
  std::vector<LocalParameter> parameters;
  TensorMap weights, first, second;
  std::int64_t repeated = 0;
};

RankOutcome train_rank(const Task& task, const Layout& layout, const Communicator& world) {
  const Mesh mesh(world, layout.expert, layout.tensor);
  const Model model = wire_model(task.model, {task.wiring, {}});
  const TrainEngineOptions configured = options_of(task, layout);
  const TrainingProgram program(model, configured, mesh.position());
  const auto states = std::make_shared<States>(make_cpu_device(), program.weight_states());
  if (task.weights.empty())
    initialise_weights(*states, kSeed, 0.1);
  else
    farskip::load_weights(*states, list_parameters(task.model), SafetensorsFolder(task.weights));
  Heartbeat heartbeat;
  const Context context = quiet_context(mesh, make_cpu_device(), &heartbeat);
  TrainEngineOptions options = configured;
  if (layout.scheduled)
    options.costs = std::make_shared<const CostTable>(measure_step_costs(model, options, context, 1));
  TrainEngine engine(model, states, options, context);
  RankOutcome out;
  for (std::int64_t step = 0; step < task.steps; ++step) {
    const std::vector<Batch> batches = batches_of(task, step, mesh.batch());
    double counted = 0;
    for (const Batch& batch : batches) counted += static_cast<double>(count_targets(batch));
    mesh.batch().all_reduce(std::span(&counted, 1));
    std::array<double, 2> also_summed{1, static_cast<double>(world.rank())};
    const BatchLoss loss = engine.compute_gradients(
        batches, static_cast<float>(1.0 / counted),
        task.balance_loss ? 0.1F / static_cast<float>(task.global_batch) : 0.0F, also_summed);
    // Once, even where the step was repeated.
    expect(also_summed == std::array<double, 2>{static_cast<double>(world.size()),
                                                world.size() * (world.size() - 1) / 2.0},
           "what travels with the sums of a step is not summed once");
    const float norm = engine.update(static_cast<float>(kLearningRate), step + 1);
    out.steps.push_back({loss.loss_sum / counted, loss.num_correct, loss.balance_loss,
                         static_cast<double>(norm), loss.load_max_over_mean()});
  }
  expect(heartbeat.last_sign().waits_in == nullptr, "a wait was entered and not left");
  expect((engine.exposed_seconds() > 0) == (world.size() > 1), "time for communication where there is none");
  out.parameters = program.parameters();
  out.first = read_states(*states, Role::optimizer, kFirstMoment);
  out.first.merge(read_states(*states, Role::optimizer, kMomentum));
  out.second = read_states(*states, Role::optimizer, kSecondMoment);
  out.weights = read_states(*states, Role::weight);
  out.repeated = engine.num_repeated();
  return out;
}

/// Copies a rank's rows, from `first` of its part on, into the whole tensor; where `filled` says that they
/// are there already, compares.
void place_rows(HostTensor& whole, std::vector<char>& filled, const HostTensor& rows, const LocalParameter& p,
                std::int64_t first) {
  const std::int64_t width = row_size(p.full_shape), own = p.columns.count;
  const float* from = rows.values<float>().data();
  p.for_each_block(
      first, rows.values<float>().size() / own,
      [&](std::int64_t, std::int64_t whole_row, std::int64_t count) {
        for (std::int64_t i = 0; i < count * own; ++i, ++from) {
          const auto at = static_cast<std::size_t>((whole_row + i / own) * width + p.columns.first + i % own);
          float& to = whole.values<float>()[at];
          if (filled[at] == 0)
            to = *from;
          else
            expect(to == *from, fmt::format("replicas of {} differ at element {}", p.spec.name, at));
          filled[at] = 1;
        }
      });
}

enum class Kind { weight, first, second };

TensorMap put_together(const Task& task, const std::vector<RankOutcome>& ranks, Kind kind) {
  const auto part_of_rank = [&](const RankOutcome& rank) -> const TensorMap& {
    return kind == Kind::weight ? rank.weights : kind == Kind::first ? rank.first : rank.second;
  };
  TensorMap whole = read_states(*make_weights(task.model), Role::weight);
  std::erase_if(whole, [&](const auto& entry) { return !part_of_rank(ranks[0]).contains(entry.first); });
  for (auto& [name, tensor] : whole) {
    std::vector<char> filled(static_cast<std::size_t>(tensor.num_elements()), 0);
    for (const RankOutcome& rank : ranks)
      for (const LocalParameter& p : rank.parameters) {
        if (p.spec.name != name) continue;
        if (kind != Kind::weight && !p.spec.is_trained) {  // the optimizer keeps nothing of it
          std::fill_n(tensor.values<float>().data(), tensor.num_elements(), 0.0F);
          std::fill(filled.begin(), filled.end(), 1);
          continue;
        }
        const HostTensor& rows = part_of_rank(rank).at(name);
        const bool in_parts = row_count(rows.shape()) < p.spec.num_rows();
        place_rows(tensor, filled, rows, p, in_parts ? p.own_rows.first : 0);
      }
    expect(std::count(filled.begin(), filled.end(), 0) == 0, fmt::format("nobody has all of {}", name));
  }
  return whole;
}

}  // namespace

ModelConfig read_model(const std::string& config) {
  ErrorList errors;
  const ConfigNode tree = parse_yaml_text(config, "test", errors);
  ModelConfig model = read_model_section(tree, errors);
  errors.throw_if_any();
  return model;
}

ModelConfig small_model(std::int64_t experts, std::int64_t top_k, std::int64_t layers) {
  return read_model(
      fmt::format(R"({{family: deepseek_v2, vocab_size: 61, hidden_size: 20, intermediate_size: 28,
    num_hidden_layers: {}, num_attention_heads: 2, kv_lora_rank: 12, q_lora_rank: null, qk_nope_head_dim: 6,
    qk_rope_head_dim: 4, v_head_dim: 5, n_routed_experts: {}, num_experts_per_tok: {},
    moe_intermediate_size: 9, n_shared_experts: 1, first_k_dense_replace: 1, max_position_embeddings: 64}})",
                  layers, experts, top_k));
}

TrainEngineOptions options_of(const Task& task, const Layout& layout) {
  FARSKIP_CHECK(task.global_batch % (task.micro_batch * layout.readers()) == 0, "{} sequences on {}",
                task.global_batch, layout.text());
  TrainEngineOptions options;
  options.micro_batch = task.micro_batch;
  options.sequence_length = task.sequence_length;
  options.micro_batches = task.global_batch / (task.micro_batch * layout.readers());
  options.document_mask = task.document_mask;
  options.balance_loss = task.balance_loss;
  options.zero = layout.zero;
  options.overlap = layout.overlap;
  options.in_flight = layout.in_flight;
  options.expert_chunks = layout.chunks;
  options.recompute = layout.recompute;
  options.routed_rows_memory = task.routed_rows_memory;
  options.optimizer.name = task.optimizer;
  options.optimizer.eps = kAdamEps;
  return options;
}

Outcome train_on(const Task& task, const Layout& layout) {
  const std::vector<RankOutcome> ranks =
      on_ranks(layout.ranks(), [&](const Communicator& world) { return train_rank(task, layout, world); });
  for (const RankOutcome& rank : ranks)
    expect(rank.steps == ranks[0].steps && rank.repeated == ranks[0].repeated,
           "ranks have different numbers");
  return {ranks[0].steps, put_together(task, ranks, Kind::weight), put_together(task, ranks, Kind::first),
          put_together(task, ranks, Kind::second), ranks[0].repeated};
}

}  // namespace farskip::test
