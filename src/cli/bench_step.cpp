// SPDX-License-Identifier: Apache-2.0
// farskip bench step: the time of a training step, and where it goes.
#include <algorithm>
#include <array>
#include <chrono>

#include "base/environment.h"
#include "base/statistics.h"
#include "cli/command_inputs.h"
#include "cli/job.h"
#include "cli/record.h"
#include "engine/devices.h"
#include "engine/engine_options.h"
#include "measure/measure.h"
#include "measure/random_engine.h"
#include "run/learning_rate.h"
#include "run/trainer.h"

namespace farskip {
namespace {

struct Options {
  std::string config, device, dump_graphs;
  std::vector<std::string> overrides;
  std::int64_t steps = 5, warmup = 2;
  bool ops = false;
  EmulateOptions emulate;
};

struct OpTime {
  double seconds = 0, flops = 0, bytes = 0;
  double wire_bytes = 0;  // sent by this rank
  bool collective = false;
};
struct StepTimes {
  std::vector<double> seconds, losses;
  // Of the observed steps. Collectives by op and phase.
  std::map<std::string, OpTime> ops, blocks, ops_of_blocks;
  std::int64_t num_observed = 0;
};

/// Of a collective, the time in which this rank could do nothing else.
void add_op_times(const Graph& graph, const std::vector<StepTime>& times, StepTimes& out) {
  constexpr std::array<const char*, 3> phases{"forward", "backward", "update"};
  for (const StepTime& t : times) {
    const Node& node = graph.node(t.node);
    const char* phase = phases[static_cast<std::size_t>(node.scope.phase)];
    std::string name = node.op->name;
    if (node.op->collective) name += fmt::format(" {}", phase);
    Scope place = node.scope;
    place.layer = -1;
    place.micro_batch = 0;
    const OpCost cost = graph.cost(t.node);
    const std::string block = place.text();
    OpTime &op = out.ops[name], &op_of_block = out.ops_of_blocks[block + " " + node.op->name];
    op.collective = op_of_block.collective = node.op->collective;  // a block has both
    for (OpTime* time : {&op, &out.blocks[block], &op_of_block}) {
      time->seconds += t.seconds;
      if (t.kind == StepKind::wait) continue;
      time->flops += cost.flops;
      time->bytes += cost.bytes;
      time->wire_bytes += cost.wire_bytes;
    }
  }
}

/// Runs steps on random tokens. On a CPU all timed steps are observed, which costs nothing there; on a GPU an
/// observed step launches its kernels one by one, so others follow for that.
class StepTimer {
 public:
  StepTimer(const LoadedRun& run, const TrainEngineOptions& options, TrainEngine& engine,
            const Context& context)
      : run_(run),
        options_(options),
        engine_(engine),
        context_(context),
        on_gpu_(!context.device()->shares_host_memory()) {}

  StepTimes run(const Options& options) {
    // On a GPU the first step chooses algorithms, the second records.
    const std::int64_t fewest = on_gpu_ ? std::max<std::int64_t>(options.warmup, 3) : options.warmup;
    warm_up(context_, static_cast<int>(fewest), [&] { step(false, false); });
    for (std::int64_t i = 0; i < options.steps; ++i) step(true, !on_gpu_);
    if (on_gpu_)
      for (std::int64_t i = 0; i < std::min<std::int64_t>(options.steps, 5); ++i) step(false, true);
    return std::move(times_);
  }

 private:
  void step(bool timed, bool observed) {
    const TrainConfig& t = run_.config.train;
    const std::int64_t tokens = t.global_batch * t.sequence_length;
    const std::vector<Batch> batches =
        random_step(static_cast<std::uint64_t>(run_.config.seed), static_cast<std::uint64_t>(number_),
                    options_, context_.mesh, run_.model.vocab_size);
    context_.world().barrier();
    engine_.observe(
        observed ? [&](const Executor& executor,
                       const std::vector<StepTime>& steps) { add_op_times(executor.graph(), steps, times_); }
                 : TrainEngine::Observer());
    const auto start = std::chrono::steady_clock::now();
    const StepResult result =
        engine_.step(batches, 1.0F / static_cast<float>(tokens),
                     static_cast<float>(t.aux_loss / static_cast<double>(t.global_batch)),
                     learning_rate_at(t.learning_rate, number_, t.steps), number_ + 1);
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    ++number_;
    times_.losses.push_back(result.loss.loss_sum / static_cast<double>(tokens));
    times_.num_observed += observed ? 1 : 0;
    if (timed) times_.seconds.push_back(seconds);
  }

  const LoadedRun& run_;
  const TrainEngineOptions& options_;
  TrainEngine& engine_;
  const Context& context_;
  const bool on_gpu_;
  StepTimes times_;
  std::int64_t number_ = 0;
};

/// Of one observed step, without collectives.
Record times_record(const std::map<std::string, OpTime>& times, double steps) {
  Record out = Record::object();
  for (const auto& [name, op] : times)
    if (!op.collective)
      out[name] = {{"seconds", op.seconds / steps}, {"flops", op.flops / steps}, {"bytes", op.bytes / steps}};
  return out;
}

struct BenchReport {
  std::string device, precision;
  bool deterministic = true;
  StepTimes times;
  MemoryReport memory;
  std::uint64_t measured_memory = 0;
  double tokens = 0, flops = 0;  // of a step
  int ranks = 1;
  std::int64_t repeated = 0;  // steps, warming up included, whose routed rows did not fit

  double seconds() const { return median(times.seconds); }
};

Record make_record(const BenchReport& r) {
  const auto steps = static_cast<double>(r.times.num_observed);
  double exposed = 0;
  Record collectives = Record::object();
  for (const auto& [name, op] : r.times.ops) {
    if (!op.collective) continue;
    exposed += op.seconds / steps;
    collectives[name] = {{"exposed_seconds", op.seconds / steps}, {"bytes", op.wire_bytes / steps}};
  }
  const double seconds = r.seconds();
  return {{"device", r.device},
          {"precision", r.precision},
          {"deterministic", r.deterministic},
          {"step_seconds", seconds},
          {"step_seconds_p99", quantile(r.times.seconds, 0.99)},
          {"step_seconds_all", r.times.seconds},
          {"tokens_per_second", r.tokens / seconds},
          {"model_tflops", r.flops / seconds * 1e-12},
          {"planned_peak_memory_bytes", r.memory.total()},
          {"peak_memory_bytes", r.measured_memory},
          {"memory_bytes",
           {{"weights", r.memory.weights},
            {"gradients", r.memory.gradients},
            {"moments", r.memory.moments},
            {"arena", r.memory.arena}}},
          {"ranks", r.ranks},
          {"repeated_steps", r.repeated},
          {"exposed_comm_seconds", exposed},
          {"collectives", collectives},
          {"ops", times_record(r.times.ops, steps)},
          {"blocks", times_record(r.times.blocks, steps)},
          {"ops_of_blocks", times_record(r.times.ops_of_blocks, steps)},
          {"losses", r.times.losses}};
}

/// The slowest first. `seconds`: the field of that name.
void print_times(const Record& times, double total, const char* seconds, std::string_view rates) {
  std::vector<std::pair<double, std::string>> rows;
  for (const auto& [name, op] : times.items()) {
    const double taken = number_of(op, seconds);
    rows.emplace_back(taken, fmt::format("{:44} {:9.3f} ms {:5.1f}% {}", name, 1e3 * taken,
                                         100 * taken / total, text_of(op, rates)));
  }
  std::sort(rows.rbegin(), rows.rend());
  for (const auto& [time, text] : rows) fmt::print("{}\n", text);
}

void print_text(const Record& r, bool ops) {
  print_line(r,
             "step {step_seconds:.4f} s (median of {step_seconds_all|count}; p99 {step_seconds_p99:.4f}), "
             "{tokens_per_second:.0f} tokens/s, {model_tflops:.3f} model TFLOP/s; memory planned "
             "{planned_peak_memory_bytes|MiB:.0f} MiB, measured {peak_memory_bytes|MiB:.0f} MiB");
  const char* const repeats = r["deterministic"].get<bool>() ? "" : ", not deterministic";
  print_line(r, fmt::format("device {{device}}, {{precision}}{}; weights {{memory_bytes.weights|MiB:.0f}}, "
                            "gradients {{memory_bytes.gradients|MiB:.0f}}, moments "
                            "{{memory_bytes.moments|MiB:.0f}}, activations and scratch "
                            "{{memory_bytes.arena|MiB:.0f}} MiB",
                            repeats));
  if (number_of(r, "repeated_steps") > 0)
    print_line(
        r,
        "{repeated_steps} of {losses|count} steps were computed twice, since their routed rows did not "
        "fit; schedule.routed_rows_memory bounds these");
  // Each part of a step is in one op and in one block.
  double observed = number_of(r, "exposed_comm_seconds");
  for (const Record& op : r["ops"]) observed += number_of(op, "seconds");
  if (number_of(r, "exposed_comm_seconds") > 0) {
    print_line(r,
               "communication takes {exposed_comm_seconds/step_seconds|%:.1f}% of the step; rank 0 waits in");
    print_times(r["collectives"], observed, "exposed_seconds", "{bytes/exposed_seconds|GB:8.1f} GB/s");
  }
  if (!ops) return;
  const auto print = [&](const char* what) {
    print_times(r[what], observed, "seconds", "{flops/seconds|G:10.1f} GFLOP/s {bytes/seconds|GB:8.1f} GB/s");
  };
  fmt::print("\nlaunched one by one, the kernels take {:.3f} ms; by op\n", 1e3 * observed);
  print("ops");
  fmt::print("\nby part of the model\n");
  print("blocks");
  fmt::print("\nby op of each part\n");
  print("ops_of_blocks");
}

ExitCode step_on_ranks(const LoadedRun& run, const Options& options, const CommonOptions& common,
                       const Job& job) {
  refuse_unsupported(run.config);
  const std::uint64_t before = resident_bytes();
  const std::shared_ptr<Device> device = open_device(run.config.device, run.config.precision, job.world);
  const Context context =
      job.context(mesh_to_measure(options.emulate, run.config.parallel, job.world, *device), device);
  const bool on_gpu = !device->shares_host_memory();
  const Model model = wire_model(run.model);
  TrainEngineOptions engine_settings = random_step_options(run, context);
  plan_by_measuring(model, context, engine_settings);
  RandomEngine engine(model, engine_settings, context, static_cast<std::uint64_t>(run.config.seed));
  BenchReport report;
  report.times = StepTimer(run, engine_settings, *engine, context).run(options);
  if (job.world.rank() != 0) return ExitCode::ok;

  const TrainConfig& t = run.config.train;
  const DeviceMemory device_memory = device->memory();
  report.device = device->name();
  report.precision = name_of(precision_names, run.config.precision);
  report.deterministic = repeats_bits(*device, engine_settings.compute, engine_settings.deterministic);
  report.memory = engine->memory();
  report.measured_memory = on_gpu ? device_memory.total - device_memory.free : peak_resident_bytes() - before;
  report.tokens = static_cast<double>(t.global_batch * t.sequence_length);
  report.flops = train_flops_per_token(run.model, t.sequence_length) * report.tokens;
  report.repeated = engine->num_repeated();
  report.ranks = context.world().size();
  print_result(
      make_record(report), [&](const Record& r) { print_text(r, options.ops || on_gpu); }, common);
  return ExitCode::ok;
}

ExitCode run_step(const Options& options, const CommonOptions& common) {
  LoadedRun run =
      load_run(options.config, options.overrides, {.model = true, .data = false}, common.logger());
  if (!options.device.empty()) run.config.device = parse_choice(device_names, options.device, "--device");
  run.config.dump_graphs = options.dump_graphs;
  prepare_dump_folder(options.dump_graphs);
  JobRequest request = request_job("bench step", run);
  request.alike.set("--steps", make_node(options.steps));
  request.alike.set("--warmup", make_node(options.warmup));
  request.alike.set("--dump-graphs", make_node(options.dump_graphs));
  return run_job(common, request, [&](Job& job) { return step_on_ranks(run, options, common, job); });
}

}  // namespace

void add_bench_step(Subcommand& bench) {
  auto o = std::make_shared<Options>();
  Subcommand step =
      bench.add("step", "Measure one training step: time, rate, memory, and where the time goes");
  step.positional("CONFIG", o->config, "Run configuration (YAML)");
  step.overrides(o->overrides);
  add_dump_option(step, o->dump_graphs);
  step.integer("--steps", o->steps, "Timed steps", 1, Subcommand::kMostRepetitions);
  step.integer("--warmup", o->warmup, "Untimed steps before them (on a GPU at least 3, and 2.5 s)", 0,
               Subcommand::kMostRepetitions);
  step.text("--device", o->device, "auto, cpu or cuda (default: the configuration's)");
  add_emulate_options(step, o->emulate);
  step.flag("--ops", o->ops, "Also print time and rate by op and by part of the model (on a GPU always)");
  step.run_on_ranks([o](const CommonOptions& common) { return run_step(*o, common); });
}

}  // namespace farskip
