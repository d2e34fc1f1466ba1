#include <algorithm>
#include <array>
#include <chrono>
#include <nlohmann/json.hpp>

#include "farskip/base/environment.h"
#include "farskip/cli/command.h"
#include "farskip/cli/job.h"
#include "farskip/cli/load.h"
#include "farskip/passes/farskip.h"
#include "farskip/train/learning_rate.h"
#include "farskip/train/overlap.h"
#include "farskip/train/trainer.h"

namespace farskip {
namespace {

struct Options {
  std::string config;
  std::vector<std::string> overrides;
  std::int64_t steps = 5, warmup = 2;
  bool ops = false;
  std::string trace;
};

struct OpTime {
  double seconds = 0, flops = 0;
  double wire_bytes = 0;  // sent by this rank
  bool collective = false;
};
struct StepTimes {
  std::vector<double> seconds, losses;
  std::map<std::string, OpTime> ops;  // of all timed steps; collectives by op and phase
};

/// Of a collective, the time in which this rank could do nothing else.
void add_op_times(const Graph& graph, const std::vector<StepTime>& times, StepTimes& out) {
  constexpr std::array<const char*, 3> phases{"forward", "backward", "update"};
  for (const StepTime& t : times) {
    const Node& node = graph.node(t.node);
    std::string name = node.op->name;
    if (node.op->collective) name += fmt::format(" {}", phases[static_cast<std::size_t>(node.scope.phase)]);
    OpTime& time = out.ops[name];
    time.collective = node.op->collective;
    time.seconds += t.seconds;
    if (t.kind == StepKind::wait) continue;
    const OpCost cost = graph.cost(t.node);
    time.flops += cost.flops;
    time.wire_bytes += cost.wire_bytes;
  }
}

StepTimes time_steps(const LoadedRun& run, TrainEngine& engine, const Options& options,
                     const Communicator& world) {
  const TrainConfig& t = run.config.train;
  const std::int64_t parts = t.global_batch / t.micro_batch, tokens = t.micro_batch * t.sequence_length;
  StepTimes times;
  for (std::int64_t step = 0; step < options.warmup + options.steps; ++step) {
    const bool timed = step >= options.warmup;
    std::vector<Batch> batches;
    for (std::int64_t part = world.rank(); part < parts; part += world.size())
      batches.push_back(random_batch(static_cast<std::uint64_t>(run.config.seed),
                                     static_cast<std::uint64_t>(step * parts + part), tokens,
                                     run.model.vocab_size));
    world.barrier();
    engine.observe(
        timed ? [&](const Executor& executor,
                    const std::vector<StepTime>& steps) { add_op_times(executor.graph(), steps, times); }
              : TrainEngine::Observer());
    const auto start = std::chrono::steady_clock::now();
    const double loss_sum =
        engine
            .compute_gradients(batches, 1.0F / static_cast<float>(tokens * parts),
                               static_cast<float>(t.aux_loss / static_cast<double>(t.global_batch)))
            .loss_sum;
    engine.update(learning_rate_at(t.learning_rate, step, t.steps), step + 1);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    times.losses.push_back(loss_sum / static_cast<double>(tokens * parts));
    if (timed) times.seconds.push_back(seconds);
  }
  return times;
}

/// Table of time by op: seconds of one step.
void print_ops(const StepTimes& times, double steps, bool collectives) {
  std::vector<std::pair<double, std::string>> rows;
  for (const auto& [name, op] : times.ops) {
    if (op.collective != collectives) continue;
    const double rate = (collectives ? op.wire_bytes : op.flops) / op.seconds * 1e-9;
    rows.emplace_back(op.seconds, fmt::format("{:28} {:9.1f} ms {:8.1f} {}", name, 1e3 * op.seconds / steps,
                                              rate, collectives ? "GB/s" : "GFLOP/s"));
  }
  std::sort(rows.rbegin(), rows.rend());
  for (const auto& [time, text] : rows) fmt::print("{}\n", text);
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

ExitCode step_on_ranks(const LoadedRun& run, const Options& options, const CommonOptions& common,
                       const Job& job) {
  refuse_unsupported(run.config);
  const std::uint64_t before = resident_bytes();
  const Mesh mesh(job.world, static_cast<int>(run.config.parallel.expert));
  const LayerGraph layers = rewire_farskip(build_layer_graph(run.model), run.model.farskip);
  TrainEngineOptions engine_settings = engine_options(run.config, job.world.size());
  if (engine_settings.overlap && job.world.size() > 1)
    engine_settings.costs = std::make_shared<const CostTable>(
        measure_step_costs(run.model, layers, engine_settings, mesh, job.heartbeat.get(), job.logger));
  const auto parameters = local_parameters(list_parameters(run.model), mesh.position(), engine_settings.zero);
  TensorMap weights = make_parameter_tensors(specs_of(parameters));
  initialise_weights(weights, parameters, static_cast<std::uint64_t>(run.config.seed),
                     run.model.initializer_range);
  const TrainConfig& t = run.config.train;
  Arena arena;
  TrainEngine engine(run.model, layers, weights, engine_settings, arena, job.logger, mesh,
                     job.heartbeat.get());
  const StepTimes times = time_steps(run, engine, options, job.world);
  if (job.world.rank() != 0) return ExitCode::ok;

  const double seconds = median(times.seconds);
  const double tokens_per_second = static_cast<double>(t.global_batch * t.sequence_length) / seconds;
  const double tflops = train_flops_per_token(run.model, t.sequence_length) * tokens_per_second * 1e-12;
  const std::uint64_t planned = engine.memory().total(), measured = peak_resident_bytes() - before;
  const auto steps = static_cast<double>(options.steps);
  double exposed = 0;
  nlohmann::ordered_json collectives = nlohmann::ordered_json::object();
  for (const auto& [name, op] : times.ops) {
    if (!op.collective) continue;
    exposed += op.seconds / steps;
    collectives[name] = {{"exposed_seconds", op.seconds / steps}, {"bytes", op.wire_bytes / steps}};
  }
  if (common.json)
    print_json({{"step_seconds", seconds},
                {"step_seconds_all", times.seconds},
                {"tokens_per_second", tokens_per_second},
                {"model_tflops", tflops},
                {"planned_peak_memory_bytes", planned},
                {"peak_memory_bytes", measured},
                {"ranks", job.world.size()},
                {"exposed_comm_seconds", exposed},
                {"collectives", collectives},
                {"losses", times.losses}});
  else
    fmt::print(
        "step {:.3f} s (median of {}), {:.0f} tokens/s, {:.3f} model TFLOP/s; memory planned {:.0f} MiB, "
        "measured {:.0f} MiB\n",
        seconds, times.seconds.size(), tokens_per_second, tflops, static_cast<double>(planned) / (1 << 20),
        static_cast<double>(measured) / (1 << 20));
  if (!common.json && exposed > 0) {
    fmt::print("communication {:.1f}% of the step, rank 0 waits in\n", 100 * exposed / seconds);
    print_ops(times, steps, true);
  }
  if (options.ops && !common.json) print_ops(times, steps, false);
  return ExitCode::ok;
}

ExitCode run_step(const Options& options, const CommonOptions& common) {
  const LoadedRun run =
      load_run(options.config, options.overrides, {.model = true, .data = false}, common.logger());
  return run_job(common, static_cast<double>(run.config.parallel.timeout),
                 [&](Job& job) { return step_on_ranks(run, options, common, job); });
}

nlohmann::ordered_json direction_json(const DirectionOverlap& d) {
  return {{"step_seconds_blocking", d.blocking_seconds}, {"step_seconds_overlapped", d.overlapped_seconds},
          {"step_seconds_ideal", d.ideal_seconds()},     {"transport_seconds", d.transport_seconds},
          {"window_seconds", d.window_seconds},          {"hideable_seconds", d.hideable_seconds},
          {"exposed_seconds", d.exposed_seconds},        {"eta", d.eta()},
          {"hidden_fraction", d.hidden_fraction()},      {"sigma", d.sigma()}};
}

void print_overlap(const OverlapReport& r) {
  fmt::print("{:10} {:>9} {:>10} {:>7} {:>9} {:>8} {:>8} {:>8} {:>6} {:>7} {:>6}\n", "ms", "blocking",
             "overlapped", "ideal", "C", "W", "H", "exposed", "eta", "hidden", "sigma");
  const auto row = [](const char* name, const DirectionOverlap& d) {
    fmt::print("{:10} {:9.1f} {:10.1f} {:7.1f} {:9.1f} {:8.1f} {:8.1f} {:8.1f} {:6.3f} {:6.1f}% {:6.3f}\n",
               name, 1e3 * d.blocking_seconds, 1e3 * d.overlapped_seconds, 1e3 * d.ideal_seconds(),
               1e3 * d.transport_seconds, 1e3 * d.window_seconds, 1e3 * d.hideable_seconds,
               1e3 * d.exposed_seconds, d.eta(), 100 * d.hidden_fraction(), d.sigma());
  };
  row("forward", r.forward);
  row("backward", r.backward);
  row("total", r.total);
  fmt::print(
      "predicted: blocking {:.1f} ms, overlapped {:.1f} ms; activations and scratch {:.0f} and {:.0f} MiB\n",
      1e3 * r.predicted_blocking_seconds, 1e3 * r.predicted_overlapped_seconds,
      static_cast<double>(r.blocking_arena_bytes) / (1 << 20),
      static_cast<double>(r.overlapped_arena_bytes) / (1 << 20));
  fmt::print("losses, gradient norms, gradients and weights {}\n",
             r.identical ? "identical to the bit" : "DIFFER");
  fmt::print("\n{:18} {:24} {:>10} {:>9} {:>9} {:>9}\n", "collective", "scope", "bytes", "alone ms",
             "window ms", "exposed ms");
  for (const CollectiveOverlap& c : r.collectives)
    fmt::print("{:18} {:24} {:10.0f} {:9.2f} {:9.2f} {:9.2f}\n", c.op, c.scope.text(), c.bytes,
               1e3 * c.transport_seconds, 1e3 * c.window_seconds, 1e3 * c.exposed_seconds);
}

nlohmann::ordered_json overlap_json(const OverlapReport& r) {
  nlohmann::ordered_json collectives = nlohmann::ordered_json::array();
  for (const CollectiveOverlap& c : r.collectives)
    collectives.push_back({{"op", c.op},
                           {"scope", c.scope.text()},
                           {"bytes", c.bytes},
                           {"transport_seconds", c.transport_seconds},
                           {"window_seconds", c.window_seconds},
                           {"exposed_seconds", c.exposed_seconds}});
  return {{"identical", r.identical},
          {"step_seconds_blocking", r.total.blocking_seconds},
          {"step_seconds_overlapped", r.total.overlapped_seconds},
          {"step_seconds_ideal", r.total.ideal_seconds()},
          {"forward", direction_json(r.forward)},
          {"backward", direction_json(r.backward)},
          {"total", direction_json(r.total)},
          {"predicted_step_seconds_blocking", r.predicted_blocking_seconds},
          {"predicted_step_seconds_overlapped", r.predicted_overlapped_seconds},
          {"arena_bytes_blocking", r.blocking_arena_bytes},
          {"arena_bytes_overlapped", r.overlapped_arena_bytes},
          {"collectives", collectives}};
}

ExitCode run_overlap(const Options& options, const CommonOptions& common) {
  const LoadedRun run =
      load_run(options.config, options.overrides, {.model = true, .data = false}, common.logger());
  return run_job(common, static_cast<double>(run.config.parallel.timeout), [&](Job& job) {
    refuse_unsupported(run.config);
    const Mesh mesh(job.world, static_cast<int>(run.config.parallel.expert));
    const OverlapReport report = measure_overlap(
        run.model, rewire_farskip(build_layer_graph(run.model), run.model.farskip),
        engine_options(run.config, job.world.size()), mesh, job.heartbeat.get(), job.logger,
        {static_cast<int>(options.steps), static_cast<int>(options.warmup), !options.trace.empty()});
    if (job.world.rank() == 0) {
      if (!options.trace.empty()) write_text_file(options.trace, report.trace);
      if (common.json)
        print_json(overlap_json(report));
      else
        print_overlap(report);
    }
    return report.identical ? ExitCode::ok : ExitCode::internal;
  });
}

}  // namespace

void add_bench(Subcommand& root) {
  auto o = std::make_shared<Options>();
  Subcommand bench = root.add("bench", "Measure on random tokens and weights; reads no data");
  Subcommand step = bench.add("step", "One training step: time, rate and memory");
  step.positional("CONFIG", o->config, "Run configuration (YAML)");
  step.positionals("overrides", o->overrides, "key.path=value", false);
  step.integer("--steps", o->steps, "Timed steps", 1);
  step.integer("--warmup", o->warmup, "Steps before them", 0);
  step.flag("--ops", o->ops, "Also a table of time and rate by op");
  Subcommand overlap = bench.add("overlap", "Blocking against overlapped communication, in turns");
  overlap.positional("CONFIG", o->config, "Run configuration (YAML)");
  overlap.positionals("overrides", o->overrides, "key.path=value", false);
  overlap.integer("--steps", o->steps, "Timed steps of each", 1);
  overlap.integer("--warmup", o->warmup, "Steps before them", 0);
  overlap.text("--trace", o->trace, "Write a Perfetto trace of the last steps of rank 0 to this file");
  overlap.run_on_ranks([o](const CommonOptions& common) { return run_overlap(*o, common); });
  step.run_on_ranks([o](const CommonOptions& common) { return run_step(*o, common); });
  add_bench_ops(bench);
}

}  // namespace farskip
