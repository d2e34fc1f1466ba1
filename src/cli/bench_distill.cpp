// SPDX-License-Identifier: Apache-2.0
// farskip bench distill: a distillation step against its two models one after the other.
#include <nlohmann/json.hpp>

#include "base/statistics.h"
#include "cli/command.h"
#include "cli/command_inputs.h"
#include "cli/job.h"
#include "engine/devices.h"
#include "engine/engine_options.h"
#include "measure/bench_joined_step.h"
#include "plan/plan_search.h"
#include "run/trainer.h"

namespace farskip {
namespace {

struct Options {
  std::string config, dump_graphs;
  std::vector<std::string> overrides;
  int steps = 5, warmup = 1;
};

double mib(std::size_t bytes) {
  return static_cast<double>(bytes) / (1 << 20);
}

void print_report(const SeparateReport& r) {
  const double joined = median(r.joined_seconds), separate = median(r.separate_seconds);
  const std::size_t memory = r.teacher.total() + r.student.total();
  fmt::print("{:34} {:>9} {:>8} {:>10} {:>8} {:>12} {:>7}\n", "", "step s", "weights", "gradients", "moments",
             "activations", "MiB");
  const auto row = [](const char* name, double seconds, const MemoryReport& m) {
    fmt::print("{:34} {:9.4f} {:8.1f} {:10.1f} {:8.1f} {:12.1f} {:7.1f}\n", name, seconds, mib(m.weights),
               mib(m.gradients), mib(m.moments), mib(m.arena), mib(m.total()));
  };
  row("teacher and student in one graph", joined, r.joined);
  row("teacher's forward alone", median(r.teacher_seconds), r.teacher);
  row("student's step alone", median(r.student_seconds), r.student);
  fmt::print("one graph against the two one after the other: {:.3f} of {:.4f} s, {:.3f} of {:.1f} MiB\n",
             joined / separate, separate, static_cast<double>(r.joined.total()) / static_cast<double>(memory),
             mib(memory));
}

nlohmann::ordered_json memory_json(const MemoryReport& m) {
  return {{"weights", m.weights},
          {"gradients", m.gradients},
          {"moments", m.moments},
          {"arena", m.arena},
          {"total", m.total()}};
}

nlohmann::ordered_json report_json(const SeparateReport& r) {
  return {{"step_seconds", median(r.joined_seconds)},
          {"separate_seconds", median(r.separate_seconds)},
          {"teacher_seconds", median(r.teacher_seconds)},
          {"student_seconds", median(r.student_seconds)},
          {"step_seconds_all", r.joined_seconds},
          {"separate_seconds_all", r.separate_seconds},
          {"planned_peak_memory_bytes", r.joined.total()},
          {"separate_peak_memory_bytes", r.teacher.total() + r.student.total()},
          {"memory_bytes", memory_json(r.joined)},
          {"memory_bytes_teacher", memory_json(r.teacher)},
          {"memory_bytes_student", memory_json(r.student)}};
}

ExitCode run_distill(const Options& o, const CommonOptions& common) {
  LoadedRun run =
      load_run(o.config, o.overrides, {.model = true, .data = false, .distill = true}, common.logger());
  run.config.dump_graphs = o.dump_graphs;
  prepare_dump_folder(o.dump_graphs);
  JobRequest request = request_job("bench distill", run);
  request.alike.set("--dump-graphs", make_node(o.dump_graphs));
  request.alike.set("--steps", make_node(o.steps));
  request.alike.set("--warmup", make_node(o.warmup));
  return run_job(common, request, [&](Job& job) {
    refuse_unsupported(run.config);
    const std::shared_ptr<Device> device = open_device(run.config.device, run.config.precision, job.world);
    const Context context = job.context(make_mesh(job.world, run.config.parallel, *device), device);
    TrainEngineOptions options = engine_options(run.config, job.world.size());
    fit_recompute(run.config.schedule, wire_model(run.model), context, options, run.distill);
    const SeparateReport report =
        bench_joined_step(run.model, *run.distill, options, context,
                          {o.steps, o.warmup, static_cast<std::uint64_t>(run.config.seed)});
    if (job.world.rank() != 0) return ExitCode::ok;
    if (common.json)
      print_json(report_json(report));
    else
      print_report(report);
    return ExitCode::ok;
  });
}

}  // namespace

void add_bench_distill(Subcommand& bench) {
  auto o = std::make_shared<Options>();
  Subcommand distill = bench.add(
      "distill",
      "Compare a distillation step with the teacher's forward followed by the student's step, in turns");
  distill.positional("CONFIG", o->config, "Run configuration (YAML) with a distill section");
  distill.overrides(o->overrides);
  distill.integer("--steps", o->steps, "Timed steps of each variant", 1, Subcommand::kMostRepetitions);
  distill.integer("--warmup", o->warmup, "Untimed steps before them", 0, Subcommand::kMostRepetitions);
  add_dump_option(distill, o->dump_graphs);
  distill.run_on_ranks([o](const CommonOptions& common) { return run_distill(*o, common); });
}

}  // namespace farskip
