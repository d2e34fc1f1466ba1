// SPDX-License-Identifier: Apache-2.0
#pragma once
// What earlier starts of a run have left, and what this start makes of it.

#include <optional>

#include "checkpoint/training_checkpoint.h"
#include "farskip/config/run_config.h"
#include "farskip/model/model_config.h"
#include "farskip/runtime/context.h"

namespace farskip {

/// Fills `states` from the newest whole checkpoint, as checkpoint.resume says; nothing where the run begins
/// anew. MissingInputError where a checkpoint is required. Collective.
std::optional<TrainingState> resume_run(const RunConfig& config, const ModelConfig& model,
                                        const RunSettings& settings, States& states, const Context& context);

/// `now`: the state that goes on, with the settings of this start; `done`: those of the checkpoint.
/// UsageError where nothing is left to do, and this start asks for other work than was done.
void report_resumed(const RunConfig& config, const TrainingState& now, const RunSettings& done,
                    bool converged, const Context& context);

/// On rank 0: the best checkpoint of steps that will be done again, or of looks that begin anew.
void set_aside_best(const fs::path& best, const TrainingState& now, const Context& context);

}  // namespace farskip
