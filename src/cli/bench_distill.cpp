// SPDX-License-Identifier: Apache-2.0
// farskip bench distill: a distillation step against its two models one after the other.
#include "base/statistics.h"
#include "cli/command_inputs.h"
#include "cli/job.h"
#include "cli/record.h"
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

Record memory_record(const MemoryReport& m) {
  return {{"weights", m.weights},
          {"gradients", m.gradients},
          {"moments", m.moments},
          {"arena", m.arena},
          {"total", m.total()}};
}

Record make_record(const SeparateReport& r) {
  return {{"step_seconds", median(r.joined_seconds)},
          {"separate_seconds", median(r.separate_seconds)},
          {"teacher_seconds", median(r.teacher_seconds)},
          {"student_seconds", median(r.student_seconds)},
          {"step_seconds_all", r.joined_seconds},
          {"separate_seconds_all", r.separate_seconds},
          {"planned_peak_memory_bytes", r.joined.total()},
          {"separate_peak_memory_bytes", r.teacher.total() + r.student.total()},
          {"memory_bytes", memory_record(r.joined)},
          {"memory_bytes_teacher", memory_record(r.teacher)},
          {"memory_bytes_student", memory_record(r.student)}};
}

void print_text(const Record& record) {
  fmt::print("{:34} {:>9} {:>8} {:>10} {:>8} {:>12} {:>7}\n", "", "step s", "weights", "gradients", "moments",
             "activations", "MiB");
  const auto row = [&](const char* name, const char* seconds, const char* memory) {
    fmt::print("{:34} {:9.4f} {}\n", name, number_of(record, seconds),
               text_of(record[memory],
                       "{weights|MiB:8.1f} {gradients|MiB:10.1f} {moments|MiB:8.1f} {arena|MiB:12.1f} "
                       "{total|MiB:7.1f}"));
  };
  row("teacher and student in one graph", "step_seconds", "memory_bytes");
  row("teacher's forward alone", "teacher_seconds", "memory_bytes_teacher");
  row("student's step alone", "student_seconds", "memory_bytes_student");
  print_line(record,
             "one graph against the two one after the other: {step_seconds/separate_seconds:.3f} of "
             "{separate_seconds:.4f} s, {planned_peak_memory_bytes/separate_peak_memory_bytes:.3f} of "
             "{separate_peak_memory_bytes|MiB:.1f} MiB");
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
    print_result(make_record(report), print_text, common);
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
