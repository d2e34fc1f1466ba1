// SPDX-License-Identifier: Apache-2.0
#pragma once
// What programs are built of.

#include "farskip/model/layer_graph.h"

namespace farskip {

/// An architecture, and its sub-blocks as they are wired.
struct Model {
  ModelConfig config;
  LayerGraph layers;
};
/// In the wiring that the configuration names (passes/farskip.h).
Model wire_model(ModelConfig config);
/// In another one.
Model wire_model(ModelConfig config, const FarSkipConfig& wiring);

}  // namespace farskip
