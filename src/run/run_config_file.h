// SPDX-License-Identifier: Apache-2.0
#pragma once
// RUN_DIR/config.yaml: which configuration a run directory is the run of.

#include "checkpoint/resume_rules.h"
#include "farskip/config/run_config.h"
#include "farskip/model/model_config.h"

namespace farskip {

/// What a run does: `config` with the wiring and, unless the model comes from a folder, all fields of
/// `model`.
RunConfig resolved_config(const RunConfig& config, const ModelConfig& model);

void write_run_config(const RunConfig& config, const ModelConfig& model, std::int64_t ranks);

/// UsageError where the run directory holds the run of another file and of another configuration, and the
/// name of this file alone leads there.
void refuse_other_file(const RunConfig& config, const ModelConfig& model);

/// For a run that has nothing left to do: UsageError where this start asks for other work than was done
/// (find_other_work), or for a start from another model. `done`: settings of the checkpoint.
void refuse_other_work(const RunConfig& config, const RunSettings& done, const RunSettings& asked);

}  // namespace farskip
