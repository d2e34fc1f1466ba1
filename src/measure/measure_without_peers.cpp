// SPDX-License-Identifier: Apache-2.0
#include "measure/measure_without_peers.h"

#include <algorithm>

#include "backend/cpu/machine.h"
#include "base/environment.h"
#include "comm/local.h"
#include "comm/mirror.h"
#include "measure/measure.h"

namespace farskip {
namespace {

void keep_distinct_layers(ModelConfig& model) {
  const std::vector<bool> layers = model.moe_layers;
  const auto kept = [&](bool moe, std::int64_t most) {
    return static_cast<std::size_t>(
        std::min<std::int64_t>(most, std::count(layers.begin(), layers.end(), moe)));
  };
  model.moe_layers.assign(kept(false, 1), false);
  model.moe_layers.insert(model.moe_layers.end(), kept(true, 2), true);
  model.num_layers = static_cast<std::int64_t>(model.moe_layers.size());
  model.farskip.layers = {};
}

/// What names layers loses its meaning: one pair of layers is compared instead, and what patterns freeze is
/// trained, which measures more ops than needed.
void keep_distinct_layers(DistillSetup& distill) {
  keep_distinct_layers(distill.teacher);
  DistillConfig& config = distill.config;
  config.hidden_layers = config.teacher_layers = {};
  if (config.hidden_loss.weight > 0) config.hidden_layers = config.teacher_layers = {0};
  std::erase_if(config.freeze,
                [](const std::string& rule) { return !find_choice(parameter_group_names, rule); });
}

}  // namespace

MirrorMeasurement choose_measurement(const PlanRequest& request, double flops_per_second, double most_seconds,
                                     int local_ranks) {
  MirrorMeasurement chosen{.request = request, .local_ranks = local_ranks};
  const ModelConfig& model = chosen.request.model;
  TrainEngineOptions& options = chosen.request.options;
  chosen.expert_chunks = {options.expert_chunks};
  if (can_chunk(request.model, options, request.mesh))
    chosen.expert_chunks.push_back(other_of_one_and_two(options.expert_chunks));
  keep_distinct_layers(chosen.request.model);
  if (chosen.request.distill) keep_distinct_layers(*chosen.request.distill);
  // The second of two micro-batches runs whatever later ones do.
  options.micro_batches = std::min<std::int64_t>(options.micro_batches, 2);
  const auto steps_in_time = [&] {
    const auto tokens =
        static_cast<double>(options.micro_batches * options.micro_batch * options.sequence_length);
    double flops = train_flops_per_token(model, options.sequence_length);
    if (const auto& distill = chosen.request.distill; distill && !distill->config.cache)
      flops += train_flops_per_token(distill->teacher, options.sequence_length) / 3;  // its forward
    const double one = static_cast<double>(chosen.expert_chunks.size()) * tokens * flops / flops_per_second;
    return static_cast<int>(std::min(most_seconds / one, 100.0)) - 1;  // one to warm up
  };
  constexpr int fewest = 3, most = 9;  // odd, so that the median is one of them
  if (steps_in_time() < fewest) options.micro_batch = 1;
  chosen.steps = std::clamp((steps_in_time() - 1) / 2 * 2 + 1, fewest, most);
  return chosen;
}

namespace {

CostTable measure_one(const MirrorMeasurement& measurement, const Logger& logger) {
  const PlanRequest& r = measurement.request;
  TrainEngineOptions options = r.options;
  Context context = make_context(make_cpu_device(), logger);
  context.mesh = make_mirror_mesh(r.mesh);
  if (r.distill) add_random_distillation(options, *r.distill, r.model, context, 0);
  CostTable table;
  for (const int chunks : measurement.expert_chunks) {
    options.expert_chunks = chunks;
    table.add(measure_step_costs(wire_model(r.model), options, context, measurement.steps));
  }
  return table;
}

}  // namespace

CostTable measure_without_peers(const MirrorMeasurement& measurement, const Logger& logger) {
  // Cores that work share memory bandwidth, caches and power: a rank alone is faster than one of many.
  CostTable table;
  run_local_ranks(measurement.local_ranks, [&](const Communicator& machine) {
    cpu::share_cores(machine.size(), machine_info().cores);
    machine.barrier();
    const CostTable measured = measure_one(measurement, logger);
    if (machine.rank() == 0) table = measured;
  });
  return table;
}

}  // namespace farskip
