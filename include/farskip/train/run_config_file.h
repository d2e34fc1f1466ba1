#pragma once
// RUN_DIR/config.yaml: which configuration a run directory is the run of.

#include "farskip/config/run_config.h"
#include "farskip/model/model_config.h"

namespace farskip {

/// What a run does: `config` with the wiring and, unless the model comes from a folder, all fields of
/// `model`.
RunConfig resolved_config(const RunConfig& config, const ModelConfig& model);

void write_run_config(const RunConfig& config, const ModelConfig& model, std::int64_t ranks);

/// UsageError where the run directory holds the run of another file and of another configuration, and nothing
/// but the names of the two files has brought them together.
void refuse_other_file(const RunConfig& config, const ModelConfig& model);

/// For a run that has nothing left to do: UsageError where the configuration asks for something else than was
/// done (how it is done, on how many ranks or with how many checkpoints, does not count, nor fewer steps).
void refuse_other_work(const RunConfig& config, const ModelConfig& model);

}  // namespace farskip
