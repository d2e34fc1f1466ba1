// SPDX-License-Identifier: Apache-2.0
#pragma once
// How the steps of a run are ordered: by costs that are measured once, and kept in its folder.

#include "farskip/config/run_config.h"
#include "farskip/engine/engine.h"

namespace farskip {

/// Chooses what the backward recomputes where that is to be chosen; adds the costs that the scheduler plans
/// by, and the number of chunks where that is to be chosen. The last two are kept in the run folder: bits
/// depend on the chunks, so they are chosen once a run. Collective.
void choose_schedule(const RunConfig& config, const Model& model, const Context& context,
                     TrainEngineOptions& options);

}  // namespace farskip
