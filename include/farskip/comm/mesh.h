// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <memory>

#include "farskip/base/mesh_position.h"
#include "farskip/comm/communicator.h"
#include "farskip/comm/device_communicator.h"

namespace farskip {

/// UsageError where these sizes do not make a mesh (Mesh says which do).
void check_mesh_sizes(int world_size, int expert_size, int tensor_size);

/// The ranks of a world as a grid of two axes. The outer one is data; the inner one is expert, or tensor
/// (whose ranks may share experts, too), so that the ranks that speak to each other in every layer are
/// neighbours.
///
/// Experts are sharded over `expert` and replicated over `data`; other matrices are cut over `tensor`, and
/// they and everything else are replicated over `batch`.
class Mesh {
 public:
  /// Collective over `world`. Throws UsageError unless both divide the world's size, and `expert_size` is 1
  /// or `tensor_size` where that is above 1.
  Mesh(const Communicator& world, int expert_size, int tensor_size = 1);
  /// The mesh takes over groups that exist already, by MeshAxis.
  using Groups = std::array<Communicator, mesh_axes.size()>;
  explicit Mesh(Groups groups);

  MeshPosition position() const {
    return {world().size(), world().rank(), expert().size(), group(MeshAxis::tensor).size()};
  }
  const Communicator& group(MeshAxis axis) const { return groups_[static_cast<std::size_t>(axis)]; }
  const Communicator& world() const { return group(MeshAxis::world); }
  const Communicator& expert() const { return group(MeshAxis::expert); }
  const Communicator& data() const { return group(MeshAxis::data); }
  const Communicator& tensor() const { return group(MeshAxis::tensor); }
  const Communicator& batch() const { return group(MeshAxis::batch); }

  /// By MeshAxis; nullptr for an axis of one rank, and where plans run on CPUs.
  using DeviceGroups = std::array<std::shared_ptr<DeviceCommunicator>, mesh_axes.size()>;
  void set_device_groups(DeviceGroups groups) { device_groups_ = std::move(groups); }
  DeviceCommunicator* on_device(MeshAxis axis) const {
    return device_groups_[static_cast<std::size_t>(axis)].get();
  }
  /// DeviceCommunicator::forget_addresses and generation of all of them.
  void forget_device_addresses() const;
  std::uint64_t device_generation() const;

 private:
  Groups groups_;
  DeviceGroups device_groups_;
};

/// The mesh of one rank.
inline Mesh make_self_mesh() {
  return {make_self_communicator(), 1};
}

}  // namespace farskip
