// SPDX-License-Identifier: Apache-2.0
#include "measure/measure.h"

#include <chrono>

#include "base/environment.h"
#include "base/version.h"
#include "comm/collective_errors.h"
#include "farskip/base/random.h"
#include "farskip/program/step_graphs.h"
#include "measure/random_engine.h"
#include "plan/plan_report.h"
#include "tensor/hash.h"

namespace farskip {

Batch random_batch(std::uint64_t seed, std::uint64_t number, std::int64_t tokens, std::int64_t vocab_size) {
  Batch batch;
  const auto draw = [&](std::uint64_t stream, std::int64_t i) {
    const double u = uniform_double(
        seed, stream, number * static_cast<std::uint64_t>(tokens) + static_cast<std::uint64_t>(i));
    return static_cast<std::int32_t>(u * static_cast<double>(vocab_size));
  };
  for (std::int64_t i = 0; i < tokens; ++i) {
    batch.tokens.push_back(draw(1, i));
    batch.targets.push_back(draw(2, i));
  }
  return batch;
}

std::vector<Batch> random_step(std::uint64_t seed, std::uint64_t number, const TrainEngineOptions& options,
                               const Mesh& mesh, std::int64_t vocab_size) {
  std::vector<Batch> batches;
  const auto count = static_cast<std::uint64_t>(options.micro_batches);
  for (std::uint64_t m = 0; m < count; ++m) {
    batches.push_back(random_batch(seed,
                                   (number * count + m) * static_cast<std::uint64_t>(mesh.batch().size()) +
                                       static_cast<std::uint64_t>(mesh.batch().rank()),
                                   options.micro_batch * options.sequence_length, vocab_size));
    if (options.document_mask) batches.back().document_start.resize(batches.back().tokens.size(), 0);
    if (options.objective) options.objective->complete_random_batch(batches.back());
  }
  return batches;
}

NodeSeconds agree_on_seconds(const Graph& graph, const std::vector<StepTime>& times,
                             const Communicator& world) {
  NodeSeconds mean(graph.nodes().size(), 0.0);
  for (const StepTime& t : times) mean[t.node.index()] += t.seconds - t.packing_seconds;
  NodeSeconds longest = mean;
  world.all_reduce(std::span(mean));
  world.all_reduce(std::span(longest), Reduction::max);
  for (std::size_t n = 0; n < mean.size(); ++n)
    mean[n] = graph.nodes()[n].op->collective ? longest[n] : mean[n] / world.size();
  return mean;
}

void add_step_costs(CostTable& table, const ExecutedPlans& plans, const Communicator& world) {
  for (const auto& [executor, times] : plans) {
    const NodeSeconds seconds = agree_on_seconds(executor->graph(), times, world);
    for (std::size_t n = 0; n < seconds.size(); ++n) table.add(executor->graph(), NodeId(n), seconds[n]);
  }
}

int warm_up(const Context& context, int fewest, const std::function<void()>& step) {
  using Clock = std::chrono::steady_clock;
  const bool by_time = context.device()->kind() != DeviceKind::cpu;
  const auto begin = Clock::now();
  int done = 0;
  for (bool cold = fewest > 0 || by_time; cold;) {
    step();
    ++done;
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    double more = done < fewest || (by_time && seconds < kGpuWarmSeconds) ? 1 : 0;
    context.world().all_reduce(std::span(&more, 1), Reduction::max);
    cold = more > 0;
  }
  return done;
}

namespace {

/// Seconds that every node of a step takes, chunks as they are in the options.
CostTable measure_as_chosen(const Model& model, const TrainEngineOptions& options, const Context& shared,
                            int steps) {
  TrainEngineOptions blocking = options;
  blocking.overlap = false;
  blocking.align = true;
  const Context context = shared.with_own_arena();
  RandomEngine engine(model, blocking, context, 0);
  const std::int64_t tokens = options.micro_batch * options.sequence_length;
  const std::vector<Batch> batches = random_step(0, 0, options, context.mesh, model.config.vocab_size);

  ExecutedPlans plans;
  engine->observe([&](const Executor& executor, const std::vector<StepTime>& times) {
    plans.emplace_back(&executor, times);
  });
  const auto step = [&] {
    plans.clear();
    engine->compute_gradients(batches, 1.0F / static_cast<float>(tokens), 0.0F);
    engine->update(0.0, 1);
  };
  warm_up(context, 1, step);
  CostTable table;
  for (int i = 0; i < steps; ++i) {
    step();
    add_step_costs(table, plans, context.world());
  }
  context.mesh.forget_device_addresses();  // before memory is given back that peers have open
  return table;
}

std::shared_ptr<const StepObjective> first_stage_of(const TrainEngineOptions& options) {
  return options.objective == nullptr ? nullptr : options.objective->first_stage();
}

}  // namespace

CostTable measure_step_costs(const Model& model, const TrainEngineOptions& options, const Context& context,
                             int steps) {
  CostTable table = measure_as_chosen(model, options, context, steps);
  if (const auto first_stage = first_stage_of(options)) {
    TrainEngineOptions other = options;
    other.objective = first_stage;
    table.add(measure_step_costs(model, other, context, steps));
  }
  if (options.expert_chunks == 0 && can_chunk(model.config, options, context.mesh.position())) {
    TrainEngineOptions two = options;
    two.expert_chunks = 2;
    table.add(measure_as_chosen(model, two, context, steps));
  }
  return table;
}

void plan_by(std::shared_ptr<const CostTable> costs, const ModelConfig& model, const Context& context,
             TrainEngineOptions& options) {
  if (options.expert_chunks == 0) {
    PlanRequest request;
    request.model = model;
    request.options = options;
    request.mesh = context.mesh.position();
    request.dtype = options.compute;
    request.costs.table = costs;
    std::int64_t chunks = context.world().rank() == 0 ? choose_expert_chunks(request, context.logger) : 1;
    const HeartbeatWait wait(context.heartbeat, "the choice of chunks");
    context.world().broadcast(std::span(&chunks, 1), 0);
    options.expert_chunks = static_cast<int>(chunks);
    context.logger.info("schedule.expert_chunks: auto chooses {} by measured costs", chunks);
  }
  options.costs = std::move(costs);
}

void plan_by_measuring(const Model& model, const Context& context, TrainEngineOptions& options) {
  if (!options.overlap || context.world().size() == 1) return;
  plan_by(std::make_shared<const CostTable>(measure_step_costs(model, options, context)), model.config,
          context, options);
}

namespace {

// A file of kept costs: the hash of what they depend on, a space, the hash of what follows this line; the
// table.

void write_kept_costs(const std::string& key, const CostTable& table, const fs::path& path,
                      const Logger& logger) {
  const std::string text = table.text();
  try {
    write_text_file(path, fmt::format("{} {}\n{}", key, hash_text(text), text));
  } catch (const IoError& error) {
    logger.warning("{}; the costs are measured again at the next start", error.what());
  }
}

/// nullptr, and said, if the text is damaged.
std::shared_ptr<const CostTable> read_kept_costs(std::string_view text, const fs::path& path,
                                                 const Logger& logger) {
  const std::size_t end = text.find('\n');
  try {
    if (end != std::string_view::npos && text.substr(0, end).ends_with(" " + hash_text(text.substr(end + 1))))
      return std::make_shared<const CostTable>(CostTable::parse(text.substr(end + 1)));
    logger.warning("{}: is damaged and passed over; the costs are measured again", path.string());
  } catch (const DataError& error) {
    logger.warning("{}: {}; the costs are measured again", path.string(), printable(error.what(), 300));
  }
  return nullptr;
}

}  // namespace

std::shared_ptr<const CostTable> kept_step_costs(const fs::path& path, std::string_view more_key,
                                                 const Model& model, const TrainEngineOptions& options,
                                                 const Context& context) {
  const Communicator& world = context.world();
  const Logger& logger = context.logger;
  TrainingProgram program(model, options, context.mesh.position());
  const auto text_of_step = [&] {
    return print_graph(build_graph(program.micro_batch(
        {options.micro_batch, program.routed_rows().max_rows, options.in_flight, false, world.size() > 1})));
  };
  std::string step = text_of_step();
  if (const auto first_stage = first_stage_of(options)) {
    program.minimise(first_stage);
    step += text_of_step();
  }
  const std::string key = hash_text(
      fmt::format("{} {} {} {} {} {} {}\n{}", machine_info().processor, context.device()->name(), commit(),
                  world.size(), options.micro_batches, options.expert_chunks, more_key, step));
  const std::string text = read_on_first_rank(world, path, logger);
  // Rank 0 alone says whether these are they: the processors of others may have another name.
  std::int64_t known = text.starts_with(key + " ") ? 1 : 0;
  world.broadcast(std::span(&known, 1), 0);
  if (known != 0)
    if (auto table = read_kept_costs(text, path, world.rank() == 0 ? logger : Logger(LogLevel::off)))
      return table;
  auto table = std::make_shared<const CostTable>(measure_step_costs(model, options, context));
  if (world.rank() == 0) write_kept_costs(key, *table, path, logger);
  logger.info("measured the costs of a step for the scheduler ({})", path.string());
  return table;
}

}  // namespace farskip
