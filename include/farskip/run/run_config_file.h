// SPDX-License-Identifier: Apache-2.0
#pragma once
// RUN_DIR/config.yaml: which configuration a run directory is the run of.

#include "farskip/config/run_config.h"
#include "farskip/model/model_config.h"

namespace farskip {

/// What a run does: `config` with the wiring and, unless the model comes from a folder, all fields of
/// `model`.
RunConfig resolved_config(const RunConfig& config, const ModelConfig& model);

void write_run_config(const RunConfig& config, const ModelConfig& model, std::int64_t ranks);

/// UsageError where the run directory holds the run of another file and of another configuration, and it is
/// only by accident that they share it: the file's name alone has chosen the folder, or that run is finished,
/// so that this one would do nothing.
void refuse_other_run(const RunConfig& config, const ModelConfig& model);

}  // namespace farskip
