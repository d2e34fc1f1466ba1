// SPDX-License-Identifier: Apache-2.0
#include "farskip/measure/random_engine.h"

namespace farskip {
namespace {

TensorMap random_weights(const ModelConfig& model, const MeshPosition& mesh, std::uint64_t seed) {
  const auto parameters = local_parameters(list_parameters(model), mesh, false);
  TensorMap weights = make_parameter_tensors(specs_of(parameters));
  initialise_weights(weights, parameters, seed, model.initializer_range);
  return weights;
}

}  // namespace

RandomEngine::RandomEngine(const Model& model, const TrainEngineOptions& options, const Context& context,
                           std::uint64_t seed)
    : weights_(random_weights(model.config, context.mesh.position(), seed)),
      engine_(model, weights_, options, context) {
  engine_.upload_weights();
}

}  // namespace farskip
