// SPDX-License-Identifier: Apache-2.0
#pragma once
// Which device a run computes on.

#include <memory>
#include <string>

#include "farskip/backend/device.h"
#include "farskip/comm/mesh.h"
#include "farskip/config/run_config.h"

namespace farskip {

/// Why this build on this machine cannot run with these choices; empty where it can.
std::string why_unsupported(DeviceChoice device, Precision precision);
/// `automatic`: GPUs where builds and machines have one for each rank of the job, else the CPU for all. The
/// ranks of a machine take the GPUs that they see in turn. UsageError where the choices cannot be had.
/// Collective.
std::shared_ptr<Device> open_device(DeviceChoice device, Precision precision,
                                    const Communicator& world = make_self_communicator());
/// The mesh of a job whose plans run on `device`; its GPUs are connected as `config.gpu_transport` says.
/// Collective. UsageError where `config.expert` does not divide the world, or where the ranks' GPUs cannot be
/// connected so.
Mesh make_mesh(const Communicator& world, const ParallelConfig& config, const Device& device);
/// Rank 0 of a job of so many ranks on this GPU alone (comm/mirror.h, make_emulated_communicator).
Mesh make_emulated_mesh(int world_size, const ParallelConfig& config, double payload, const Device& device);
DType compute_type(Precision precision);
/// Whether a training step has the same bits in each run: it is told to (`deterministic`), or every kernel of
/// this device repeats its bits in this type anyway.
bool repeats_bits(const Device& device, DType compute, bool deterministic);

}  // namespace farskip
