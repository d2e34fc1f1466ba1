// SPDX-License-Identifier: Apache-2.0
#pragma once
// From the configuration of a run to what its engine is told.

#include "farskip/config/run_config.h"
#include "farskip/engine/engine.h"

namespace farskip {

/// What the configuration says about the engine on each of `world_size` ranks. UsageError unless the batch
/// can be dealt out to them evenly.
TrainEngineOptions engine_options(const RunConfig& config, int world_size);

/// What the configuration asks for and this build on this machine cannot do, as a UsageError naming the key.
void refuse_unsupported(const RunConfig& config);

}  // namespace farskip
