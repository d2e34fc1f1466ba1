#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "farskip/base/environment.h"
#include "farskip/base/random.h"
#include "farskip/cli/command.h"
#include "farskip/cli/job.h"
#include "farskip/cli/load.h"
#include "farskip/passes/farskip.h"
#include "farskip/train/learning_rate.h"
#include "farskip/train/trainer.h"

namespace farskip {
namespace {

struct Options {
  std::string config;
  std::vector<std::string> overrides;
  std::int64_t steps = 5, warmup = 2;
  bool ops = false;
};

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

struct StepTimes {
  std::vector<double> seconds, losses;
  std::map<std::string, std::pair<double, double>> ops;  // seconds and flops of all timed steps, by op
};

void add_op_times(const Graph& graph, const std::vector<NodeTime>& times, StepTimes& out) {
  for (const NodeTime& t : times) {
    auto& [seconds, flops] = out.ops[graph.node(t.node).op->name];
    seconds += t.seconds;
    flops += graph.cost(t.node).flops;
  }
}

StepTimes time_steps(const LoadedRun& run, TrainEngine& engine, const Options& options) {
  const TrainConfig& t = run.config.train;
  const std::int64_t parts = t.global_batch / t.micro_batch, tokens = t.micro_batch * t.sequence_length;
  StepTimes times;
  std::vector<NodeTime> nodes;
  for (std::int64_t step = 0; step < options.warmup + options.steps; ++step) {
    const auto start = std::chrono::steady_clock::now();
    double loss_sum = 0;
    const bool timed = step >= options.warmup;
    for (std::int64_t part = 0; part < parts; ++part) {
      const Batch batch =
          random_batch(static_cast<std::uint64_t>(run.config.seed),
                       static_cast<std::uint64_t>(step * parts + part), tokens, run.model.vocab_size);
      nodes.clear();
      engine.record_times(options.ops && timed ? &nodes : nullptr);
      loss_sum +=
          engine
              .micro_batch(batch, 1.0F / static_cast<float>(tokens * parts),
                           static_cast<float>(t.aux_loss / static_cast<double>(t.global_batch)), part == 0)
              .loss_sum;
      if (part == 0) add_op_times(engine.micro_batch_executor().graph(), nodes, times);
    }
    nodes.clear();
    engine.update(learning_rate_at(t.learning_rate, step, t.steps), step + 1);
    add_op_times(engine.update_executor().graph(), nodes, times);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    times.losses.push_back(loss_sum / static_cast<double>(tokens * parts));
    if (timed) times.seconds.push_back(seconds);
  }
  return times;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

ExitCode step_on_ranks(const LoadedRun& run, const Options& options, const CommonOptions& common,
                       const Job& job) {
  if (job.world.size() > 1) throw UsageError("this build measures on one rank");
  refuse_unsupported(run.config);
  const std::uint64_t before = resident_bytes();
  const std::vector<ParameterSpec> specs = list_parameters(run.model);
  TensorMap weights = make_parameter_tensors(specs);
  initialise_weights(weights, whole_parameters(specs), static_cast<std::uint64_t>(run.config.seed),
                     run.model.initializer_range);
  const TrainConfig& t = run.config.train;
  Arena arena;
  TrainEngine engine(run.model, rewire_farskip(build_layer_graph(run.model), run.model.farskip), weights,
                     engine_options(run.config), arena, job.logger);
  const StepTimes times = time_steps(run, engine, options);

  const double seconds = median(times.seconds);
  const double tokens_per_second = static_cast<double>(t.global_batch * t.sequence_length) / seconds;
  const double tflops = train_flops_per_token(run.model, t.sequence_length) * tokens_per_second * 1e-12;
  const std::uint64_t planned = engine.memory().total(), measured = peak_resident_bytes() - before;
  if (common.json)
    print_json({{"step_seconds", seconds},
                {"step_seconds_all", times.seconds},
                {"tokens_per_second", tokens_per_second},
                {"model_tflops", tflops},
                {"planned_peak_memory_bytes", planned},
                {"peak_memory_bytes", measured},
                {"losses", times.losses}});
  else
    fmt::print(
        "step {:.3f} s (median of {}), {:.0f} tokens/s, {:.3f} model TFLOP/s; memory planned {:.0f} MiB, "
        "measured {:.0f} MiB\n",
        seconds, times.seconds.size(), tokens_per_second, tflops, static_cast<double>(planned) / (1 << 20),
        static_cast<double>(measured) / (1 << 20));
  if (options.ops && !common.json) {
    std::vector<std::pair<double, std::string>> rows;
    for (const auto& [name, value] : times.ops)
      rows.emplace_back(value.first, fmt::format("{:28} {:9.1f} ms {:8.1f} GFLOP/s", name,
                                                 1e3 * value.first / static_cast<double>(options.steps),
                                                 value.second / value.first * 1e-9));
    std::sort(rows.rbegin(), rows.rend());
    for (const auto& [time, text] : rows) fmt::print("{}\n", text);
  }
  return ExitCode::ok;
}

ExitCode run_step(const Options& options, const CommonOptions& common) {
  const LoadedRun run =
      load_run(options.config, options.overrides, {.model = true, .data = false}, common.logger());
  return run_job(common, static_cast<double>(run.config.parallel.timeout),
                 [&](Job& job) { return step_on_ranks(run, options, common, job); });
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
  step.run_on_ranks([o](const CommonOptions& common) { return run_step(*o, common); });
}

}  // namespace farskip
