// SPDX-License-Identifier: Apache-2.0
#include "run/resume_run.h"

#include "run/learning_rate.h"
#include "run/run_config_file.h"

namespace farskip {

std::optional<TrainingState> resume_run(const RunConfig& config, const ModelConfig& model,
                                        const RunSettings& settings, States& states, const Context& context) {
  const fs::path checkpoints = fs::path(config.run_dir) / "checkpoints";
  if (config.checkpoint.resume != Resume::never)
    if (auto resumed = resume_training(checkpoints, model, settings, states, context.world(), context.logger))
      return resumed;
  if (config.checkpoint.resume == Resume::required)
    throw MissingInputError(
        fmt::format("{}: no checkpoint to resume from (checkpoint.resume: required)", checkpoints.string()));
  if (config.checkpoint.resume == Resume::never)
    set_aside_all_checkpoints(checkpoints, context.world(), context.logger);
  return std::nullopt;
}

void report_resumed(const RunConfig& config, const TrainingState& now, const RunSettings& done,
                    bool converged, const Context& context) {
  const bool is_first = context.world().rank() == 0;
  context.logger.info("resumed at step {}", now.step);
  const auto jump = describe_rate_jump(config.train, now.step, now.learning_rate);
  if (jump && is_first) context.logger.warning("{}", *jump);
  const bool all_done = now.step >= config.train.steps;
  if ((all_done || converged) && is_first) refuse_other_work(config, done, now.settings);
  if (all_done) context.logger.info("train.steps is {}: nothing is left to do", config.train.steps);
}

void set_aside_best(const fs::path& best, const TrainingState& now, const Context& context) {
  if (context.world().rank() != 0 || !fs::exists(best)) return;
  set_aside_newer_checkpoints(best, now.numbers.contains("best") ? now.step : -1, context.logger, "replaced");
}

}  // namespace farskip
