// SPDX-License-Identifier: Apache-2.0
#include "farskip/program/model.h"

#include "passes/farskip.h"

namespace farskip {

Model wire_model(ModelConfig config) {
  const FarSkipConfig wiring = config.farskip;
  return wire_model(std::move(config), wiring);
}

Model wire_model(ModelConfig config, const FarSkipConfig& wiring) {
  LayerGraph layers = rewire_farskip(build_layer_graph(config), wiring);
  return {std::move(config), std::move(layers)};
}

}  // namespace farskip
