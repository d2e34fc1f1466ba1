// Costs of the kernels of one rank of many, measured without the others.
#include <algorithm>

#include "farskip/comm/mirror.h"
#include "farskip/passes/farskip.h"
#include "farskip/train/measure.h"
#include "farskip/train/plan_report.h"

namespace farskip {

MirrorMeasurement choose_measurement(const PlanRequest& request, double flops_per_second,
                                     double most_seconds) {
  MirrorMeasurement chosen{request, 3};
  ModelConfig& model = chosen.request.model;
  TrainEngineOptions& options = chosen.request.options;
  const auto kept = [&](bool moe, std::int64_t most) {
    const auto& layers = request.model.moe_layers;
    return std::min<std::int64_t>(most, std::count(layers.begin(), layers.end(), moe));
  };
  model.moe_layers.assign(static_cast<std::size_t>(kept(false, 1)), false);
  model.moe_layers.insert(model.moe_layers.end(), static_cast<std::size_t>(kept(true, 2)), true);
  model.num_layers = static_cast<std::int64_t>(model.moe_layers.size());
  model.farskip.layers = {};
  // The second of two micro-batches runs whatever later ones do.
  options.micro_batches = std::min<std::int64_t>(options.micro_batches, 2);
  const auto steps_in_time = [&] {
    const auto tokens =
        static_cast<double>(options.micro_batches * options.micro_batch * options.sequence_length);
    const double one = tokens * train_flops_per_token(model, options.sequence_length) / flops_per_second;
    return static_cast<int>(std::min(most_seconds / one, 100.0)) - 1;  // one to warm up
  };
  constexpr int fewest = 3, most = 9;  // odd, so that the median is one of them
  if (steps_in_time() < fewest) options.micro_batch = 1;
  chosen.steps = std::clamp((steps_in_time() - 1) / 2 * 2 + 1, fewest, most);
  return chosen;
}

CostTable measure_on_mirror(const MirrorMeasurement& measurement, const Logger& logger) {
  const PlanRequest& r = measurement.request;
  const LayerGraph layers = rewire_farskip(build_layer_graph(r.model), r.model.farskip);
  return measure_step_costs(r.model, layers, r.options, make_mirror_mesh(r.mesh), make_cpu_device(), nullptr,
                            logger, measurement.steps);
}

}  // namespace farskip
