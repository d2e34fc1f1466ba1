// SPDX-License-Identifier: Apache-2.0
#include "engine/devices.h"

#include <algorithm>

#include "backend/cuda/info.h"
#include "base/environment.h"
#include "comm/mirror.h"

namespace farskip {

DType compute_type(Precision precision) {
  return precision == Precision::bf16 ? DType::bf16 : DType::f32;
}

bool repeats_bits(const Device& device, DType compute, bool deterministic) {
  return deterministic || device.kind() == DeviceKind::cpu || compute != DType::bf16;
}

std::string why_unsupported(DeviceChoice device, Precision precision) {
  const std::string no_gpu = device == DeviceChoice::cpu ? "" : why_no_cuda_device();
  if (device == DeviceChoice::cuda && !no_gpu.empty()) return "device cuda: " + no_gpu;
  if (precision != Precision::bf16) return {};
  if (device == DeviceChoice::cpu) return "precision: the CPU computes in fp32; use fp32, or device cuda";
  if (!no_gpu.empty())
    return "precision: bf16 needs a GPU, the CPU computes in fp32; use fp32. There is no GPU: " + no_gpu;
  return {};
}

std::shared_ptr<Device> open_device(DeviceChoice device, Precision precision, const Communicator& world) {
  if (const std::string why = why_unsupported(device, precision); !why.empty()) throw UsageError(why);
  if (device == DeviceChoice::cpu) return make_cpu_device();
  const LauncherPlace place = launcher_place().value_or(LauncherPlace{});
  const auto num_gpus = static_cast<int>(cuda::info().gpus.size());
  if (device == DeviceChoice::automatic && precision != Precision::bf16) {
    double without = place.local_size > num_gpus || !why_no_cuda_device().empty() ? 1 : 0;
    world.all_reduce(std::span(&without, 1), Reduction::max);  // machines may differ
    if (without > 0) return make_cpu_device();
  }
  return make_cuda_device(place.local_rank % std::max(num_gpus, 1));
}

namespace {

std::shared_ptr<DeviceCommunicator> connect(const Communicator& group, GpuTransport transport,
                                            const Device& device) {
  if (transport == GpuTransport::nccl) return make_nccl_communicator(group, device.index());
  const bool may_share_gpus = transport == GpuTransport::copy_engines;
  const std::string why = why_no_copy_engines(group, device.index(), may_share_gpus);
  try {
    if (why.empty()) return make_copy_engine_communicator(group, device.index());
  } catch (const Error&) {  // on all ranks
    if (transport != GpuTransport::automatic) throw;
  }
  if (transport == GpuTransport::automatic) return make_nccl_communicator(group, device.index());
  throw UsageError(fmt::format(
      "parallel.gpu_transport: copy_engines cannot connect '{}': {}; use auto or nccl", group.name(), why));
}

}  // namespace

Mesh make_mesh(const Communicator& world, const ParallelConfig& config, const Device& device) {
  Mesh mesh(world, config.expert, config.tensor);
  if (device.kind() == DeviceKind::cpu) return mesh;
  Mesh::DeviceGroups groups;
  const auto connected = [&](MeshAxis axis) -> auto& {
    return groups[static_cast<std::size_t>(axis)];
  };
  const MeshPosition position = mesh.position();
  for (const MeshAxis axis : mesh_axes)
    if (position.size(axis) > 1 && !connected(axis)) {
      connected(axis) = connect(mesh.group(axis), config.gpu_transport, device);
      for (const MeshAxis other : mesh_axes)
        if (position.same_ranks(axis, other)) connected(other) = connected(axis);
    }
  mesh.set_device_groups(std::move(groups));
  return mesh;
}

Mesh make_emulated_mesh(int world_size, const ParallelConfig& config, double payload, const Device& device) {
  if (device.kind() == DeviceKind::cpu)
    throw UsageError(
        "emulated ranks need a GPU (--device cuda): their link is the bus between it and the host");
  check_mesh_sizes(world_size, config.expert, config.tensor);
  Mesh mesh = make_mirror_mesh({world_size, 0, config.expert, config.tensor});
  Mesh::DeviceGroups groups;
  for (const MeshAxis axis : mesh_axes) {
    const Communicator& group = mesh.group(axis);
    if (group.size() > 1)
      groups[static_cast<std::size_t>(axis)] = make_emulated_communicator(
          group.size(), group.rank(), std::string(axis_name(axis)), device.index(), payload);
  }
  mesh.set_device_groups(std::move(groups));
  return mesh;
}

}  // namespace farskip
