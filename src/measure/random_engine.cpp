// SPDX-License-Identifier: Apache-2.0
#include "measure/random_engine.h"

namespace farskip {
namespace {

std::shared_ptr<States> random_weights(const Model& model, const TrainEngineOptions& options,
                                       const Context& context, std::uint64_t seed) {
  auto states = std::make_shared<States>(
      context.device(), TrainingProgram(model, options, context.mesh.position()).weight_states());
  initialise_weights(*states, seed, model.config.initializer_range);
  return states;
}

}  // namespace

RandomEngine::RandomEngine(const Model& model, const TrainEngineOptions& options, const Context& context,
                           std::uint64_t seed)
    : engine_(model, random_weights(model, options, context, seed), options, context) {}

}  // namespace farskip
