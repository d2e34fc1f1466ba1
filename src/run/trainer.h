// SPDX-License-Identifier: Apache-2.0
#pragma once
// The training run: data, steps, validation, metrics, checkpoints.

#include <memory>
#include <optional>

#include "farskip/backend/device.h"
#include "farskip/base/heartbeat.h"
#include "farskip/base/log.h"
#include "farskip/comm/communicator.h"
#include "farskip/config/run_config.h"
#include "farskip/model/model_config.h"

namespace farskip {

struct TrainResult {
  std::int64_t step = 0;
  std::optional<double> loss;  // of the last step that had targets, if this run did one
  std::optional<double> validation_loss;
  bool stopped_early = false;  // on request: a checkpoint was saved, the run can be resumed
  bool converged = false;      // distillation: early stopping ended it
};

/// Trains to the end, or until a stop signal; with a section `distill`, on what its teacher says. `model` is
/// the architecture that the configuration names. Collective over `world`, the ranks of the job. `device`:
/// absent, the one that the configuration asks for.
TrainResult train(const RunConfig& config, const ModelConfig& model, const Communicator& world,
                  Heartbeat& heartbeat, const Logger& logger, std::shared_ptr<Device> device = nullptr);

}  // namespace farskip
