// SPDX-License-Identifier: Apache-2.0
#include "run/run_schedule.h"

#include "base/environment.h"
#include "checkpoint/training_checkpoint.h"
#include "comm/collective_errors.h"
#include "farskip/config/scalar.h"
#include "measure/measure.h"
#include "plan/plan_search.h"

namespace farskip {
namespace {

/// The number that was chosen before; 0: none.
int read_chunks(const fs::path& kept, const Context& context) {
  const std::string text = read_on_first_rank(context.world(), kept, context.logger);
  const std::int64_t number = parse_integer(text.substr(0, text.find('\n'))).value.value_or(0);
  if (number >= 1 && number <= ScheduleConfig::kMostExpertChunks) return static_cast<int>(number);
  if (!text.empty() && context.world().rank() == 0)
    context.logger.warning("{}: holds \"{}\", where a number from 1 to {} is expected: it is chosen again",
                           kept.string(), printable(text), ScheduleConfig::kMostExpertChunks);
  return 0;
}

/// Of which shapes costs are, beside what kept_step_costs knows.
std::string cost_key(const RunConfig& config) {
  return config.distill ? to_yaml(*run_config_tree(config).find("distill")) : "";
}

}  // namespace

void choose_schedule(const RunConfig& config, const Model& model, const Context& context,
                     TrainEngineOptions& options) {
  fit_recompute(config.schedule, model, context, options);
  const fs::path folder = config.run_dir, kept = folder / "expert_chunks.txt";
  const TrainEngineOptions configured = options;  // what is measured, at every start
  if (options.expert_chunks == 0) options.expert_chunks = read_chunks(kept, context);
  const bool chooses =
      options.expert_chunks == 0 && can_chunk(model.config, options, context.mesh.position());
  if (options.overlap && context.world().size() > 1)
    plan_by(kept_step_costs(folder / "costs.txt", cost_key(config), model, configured, context), model.config,
            context, options);
  if (chooses && options.expert_chunks > 0 && context.world().rank() == 0)
    write_text_file(kept, fmt::format("{}\n", options.expert_chunks));
}

}  // namespace farskip
