// SPDX-License-Identifier: Apache-2.0
#include "base/stop_signals.h"
#include "cli/command_inputs.h"
#include "cli/job.h"
#include "cli/record.h"
#include "run/trainer.h"

namespace farskip {
namespace {

struct Options {
  std::string config, dump_graphs;
  std::vector<std::string> overrides;
};

ExitCode train_on_ranks(const LoadedRun& loaded, const CommonOptions& common, const Job& job) {
  const TrainResult result = train(loaded.config, loaded.model, job.world, *job.heartbeat, job.logger);
  if (common.json && job.world.rank() == 0) {
    Record o{{"run_dir", loaded.config.run_dir}, {"step", result.step}, {"loss", nullptr}};
    if (result.loss) o["loss"] = *result.loss;
    if (result.validation_loss) o["validation_loss"] = *result.validation_loss;
    o["stopped_early"] = result.stopped_early;
    if (loaded.config.distill) o["converged"] = result.converged;
    print_json(o);
  }
  if (result.stopped_early)
    job.logger.info("stopped at step {} on request; run the same command to resume", result.step);
  return result.stopped_early ? ExitCode::resumable : ExitCode::ok;
}

ExitCode run(const Options& options, bool distills, const CommonOptions& common) {
  const StopSignals signals;  // first: a batch system may ask while files are read
  LoadedRun loaded = load_run(options.config, options.overrides,
                              {.model = true, .data = true, .distill = distills}, common.logger());
  loaded.config.dump_graphs = options.dump_graphs;
  prepare_dump_folder(options.dump_graphs);
  if (!distills && loaded.config.distill)
    throw UsageError(
        fmt::format("{} has a distill section, which 'farskip train' does not use; use 'farskip distill', or "
                    "remove the section",
                    options.config));
  JobRequest request = request_job(distills ? "distill" : "train", loaded);
  request.alike.set("--dump-graphs", make_node(options.dump_graphs));
  return run_job(common, request, [&](Job& job) { return train_on_ranks(loaded, common, job); });
}

void add_run(Subcommand& root, const std::string& name, const std::string& help, bool distills) {
  auto o = std::make_shared<Options>();
  Subcommand sub = root.add(name, help);
  sub.positional("CONFIG", o->config, "Run configuration (YAML, docs/configuration.md)");
  sub.overrides(o->overrides);
  add_dump_option(sub, o->dump_graphs);
  sub.run_on_ranks([o, distills](const CommonOptions& common) { return run(*o, distills, common); });
}

}  // namespace

void add_train(Subcommand& root) {
  add_run(root, "train", "Train from scratch or from a checkpoint", false);
}

void add_distill(Subcommand& root) {
  add_run(root, "distill",
          "Train a rewired student to predict what its teacher predicts (docs/distillation.md)", true);
}

}  // namespace farskip
