// Costs of the kernels of one rank of many, measured without the others.
#include <algorithm>

#include "farskip/comm/mirror.h"
#include "farskip/passes/farskip.h"
#include "farskip/train/measure.h"
#include "farskip/train/plan_report.h"

namespace farskip {

PlanRequest shorten_for_measuring(const PlanRequest& request, double flops_per_second, double most_seconds) {
  PlanRequest shorter = request;
  ModelConfig& model = shorter.model;
  const auto kept = [&](bool moe, std::int64_t most) {
    const auto& layers = request.model.moe_layers;
    return std::min<std::int64_t>(most, std::count(layers.begin(), layers.end(), moe));
  };
  model.moe_layers.assign(static_cast<std::size_t>(kept(false, 1)), false);
  model.moe_layers.insert(model.moe_layers.end(), static_cast<std::size_t>(kept(true, 2)), true);
  model.num_layers = static_cast<std::int64_t>(model.moe_layers.size());
  model.farskip.layers = {};
  // The second of two micro-batches runs whatever later ones do.
  shorter.options.micro_batches = std::min<std::int64_t>(request.options.micro_batches, 2);
  constexpr double steps = 3;  // one of them to warm up
  const double tokens = static_cast<double>(shorter.options.micro_batches * request.options.micro_batch *
                                            request.options.sequence_length);
  if (steps * tokens * train_flops_per_token(model, request.options.sequence_length) >
      most_seconds * flops_per_second)
    shorter.options.micro_batch = 1;
  return shorter;
}

CostTable measure_on_mirror(const PlanRequest& request, const Logger& logger) {
  const LayerGraph layers = rewire_farskip(build_layer_graph(request.model), request.model.farskip);
  return measure_step_costs(request.model, layers, request.options, make_mirror_mesh(request.mesh), nullptr,
                            logger);
}

}  // namespace farskip
