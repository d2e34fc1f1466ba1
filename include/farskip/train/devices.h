#pragma once
// Which device a run computes on.

#include <memory>
#include <string>

#include "farskip/backend/device.h"
#include "farskip/config/run_config.h"

namespace farskip {

/// Why this build on this machine cannot run with these choices; empty where it can.
std::string why_unsupported(DeviceChoice device, Precision precision);
/// `automatic`: a GPU where the build and the machine have one and the job has one rank, else the CPU.
/// UsageError where the choices cannot be had.
std::shared_ptr<Device> open_device(DeviceChoice device, Precision precision, int num_ranks = 1);
/// Of a training run; one that distils runs on the CPU.
std::shared_ptr<Device> open_device(const RunConfig& config, int num_ranks);
/// UsageError for a GPU where the job has several ranks.
void refuse_ranks_on_gpu(const Device& device, int num_ranks);
DType compute_type(Precision precision);

}  // namespace farskip
