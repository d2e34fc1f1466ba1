// SPDX-License-Identifier: Apache-2.0
#include "base/folder.h"
#include "cli/command_inputs.h"
#include "cli/job.h"
#include "cli/record.h"
#include "engine/devices.h"
#include "engine/engine_options.h"
#include "measure/overlap.h"
#include "run/trainer.h"

namespace farskip {
namespace {

struct Options {
  std::string config, dump_graphs;
  std::vector<std::string> overrides;
  int steps = 5, warmup = 2;
  EmulateOptions emulate;
  std::string device, trace;
};

Record direction_record(const DirectionOverlap& d) {
  return {{"step_seconds_blocking", d.blocking_seconds},
          {"step_seconds_overlapped", d.overlapped_seconds},
          {"step_seconds_ideal", d.ideal_seconds()},
          {"transport_seconds", d.transport_seconds},
          {"window_seconds", d.window_seconds},
          {"hideable_seconds", d.hideable_seconds},
          {"exposed_seconds", d.exposed_seconds},
          {"skew_seconds", d.skew_seconds},
          {"planned_seconds", d.planned_seconds},
          {"planned_eta", d.planned_eta()},
          {"eta", d.eta()},
          {"hidden_fraction", d.hidden_fraction()},
          {"sigma", d.sigma()}};
}

Record overlap_record(const OverlapReport& r) {
  Record collectives = Record::array();
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
          {"forward", direction_record(r.forward)},
          {"backward", direction_record(r.backward)},
          {"total", direction_record(r.total)},
          {"predicted_step_seconds_blocking", r.predicted_blocking_seconds},
          {"predicted_step_seconds_overlapped", r.predicted_overlapped_seconds},
          {"arena_bytes_blocking", r.blocking_arena_bytes},
          {"arena_bytes_overlapped", r.overlapped_arena_bytes},
          {"collectives", collectives}};
}

/// Whether figures are to be trusted is said in the text alone.
void print_overlap(const Record& record, const OverlapReport& r) {
  fmt::print("{:10} {:>9} {:>10} {:>9} {:>7} {:>9} {:>8} {:>8} {:>8} {:>6} {:>11} {:>7} {:>6} {:>7}\n", "ms",
             "blocking", "overlapped", "planned", "ideal", "C", "W", "H", "exposed", "eta", "eta planned",
             "hidden", "sigma", "skew");
  const auto row = [&](const char* name, const DirectionOverlap& d) {
    fmt::print(
        "{:10} {}{}\n", name,
        text_of(record[name],
                "{step_seconds_blocking|ms:9.1f} {step_seconds_overlapped|ms:10.1f} "
                "{planned_seconds|ms:9.1f} {step_seconds_ideal|ms:7.1f} {transport_seconds|ms:9.1f} "
                "{window_seconds|ms:8.1f} {hideable_seconds|ms:8.1f} {exposed_seconds|ms:8.1f} {eta:6.3f} "
                "{planned_eta:11.3f} {hidden_fraction|%:6.1f}% {sigma:6.3f} {skew_seconds|ms:7.1f}"),
        d.is_doubtful() ? "  too short or too disturbed to judge" : "");
  };
  row("forward", r.forward);
  row("backward", r.backward);
  row("total", r.total);
  print_line(record,
             "predicted: blocking {predicted_step_seconds_blocking|ms:.1f} ms, overlapped "
             "{predicted_step_seconds_overlapped|ms:.1f} ms; activations and scratch "
             "{arena_bytes_blocking|MiB:.0f} and {arena_bytes_overlapped|MiB:.0f} MiB");
  fmt::print("losses, gradient norms, gradients and weights {}\n",
             r.identical ? "identical to the bit" : "DIFFER");
  fmt::print("\n{:18} {:24} {:>10} {:>9} {:>9} {:>9}\n", "collective", "scope", "bytes", "alone ms",
             "window ms", "exposed ms");
  print_lines(record["collectives"],
              "{op:18} {scope:24} {bytes:10.0f} {transport_seconds|ms:9.2f} {window_seconds|ms:9.2f} "
              "{exposed_seconds|ms:9.2f}");
}

ExitCode run_overlap(const Options& options, const CommonOptions& common) {
  if (!options.trace.empty()) refuse_overwriting("--trace", options.trace, options.config);
  LoadedRun run =
      load_run(options.config, options.overrides, {.model = true, .data = false}, common.logger());
  if (!options.device.empty()) run.config.device = parse_choice(device_names, options.device, "--device");
  run.config.dump_graphs = options.dump_graphs;
  prepare_dump_folder(options.dump_graphs);
  JobRequest request = request_job("bench overlap", run);
  request.alike.set("--steps", make_node(options.steps));
  request.alike.set("--warmup", make_node(options.warmup));
  request.alike.set("--trace", make_node(!options.trace.empty()));
  request.alike.set("--dump-graphs", make_node(options.dump_graphs));
  return run_job(common, request, [&](Job& job) {
    refuse_unsupported(run.config);
    const std::shared_ptr<Device> device = open_device(run.config.device, run.config.precision, job.world);
    if (!repeats_bits(*device, compute_type(run.config.precision), run.config.deterministic))
      throw UsageError(
          "deterministic: false gives other last bits in each run, and bench overlap compares those of the "
          "blocking and the overlapped step; use deterministic=true");
    const Context context =
        job.context(mesh_to_measure(options.emulate, run.config.parallel, job.world, *device), device);
    if (context.world().size() == 1)
      throw UsageError("bench overlap: one rank has no peer; use mpirun -np 2");
    const OverlapReport report =
        measure_overlap(wire_model(run.model), random_step_options(run, context), context,
                        {options.steps, options.warmup, !options.trace.empty()});
    if (job.world.rank() == 0) {
      if (!options.trace.empty()) write_text_file(options.trace, report.trace);
      print_result(
          overlap_record(report), [&](const Record& record) { print_overlap(record, report); }, common);
    }
    return report.identical ? ExitCode::ok : ExitCode::internal;
  });
}

}  // namespace

void add_bench(Subcommand& root) {
  auto o = std::make_shared<Options>();
  Subcommand bench = root.add("bench", "Measure on random tokens and weights, without data");
  add_bench_step(bench);
  Subcommand overlap = bench.add("overlap", "Compare blocking with overlapped communication, in turns");
  overlap.positional("CONFIG", o->config, "Run configuration (YAML)");
  overlap.overrides(o->overrides);
  overlap.integer("--steps", o->steps, "Timed steps of each variant", 1, Subcommand::kMostRepetitions);
  overlap.integer("--warmup", o->warmup, "Untimed steps before them", 0, Subcommand::kMostRepetitions);
  overlap.text("--device", o->device, "auto, cpu or cuda (default: the configuration's)");
  add_emulate_options(overlap, o->emulate);
  overlap.path("--trace", o->trace, "Write a Perfetto trace of the last steps of rank 0 to this file");
  add_dump_option(overlap, o->dump_graphs);
  overlap.run_on_ranks([o](const CommonOptions& common) { return run_overlap(*o, common); });
  add_bench_comm(bench);
  add_bench_distill(bench);
  add_bench_ops(bench);
  add_bench_inference(bench);
}

}  // namespace farskip
