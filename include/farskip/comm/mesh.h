// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <memory>

#include "farskip/base/mesh_position.h"
#include "farskip/comm/communicator.h"
#include "farskip/comm/device_communicator.h"

namespace farskip {

/// The ranks of a world as a grid of two axes, data and expert. Expert is the inner one: rank = data index *
/// expert size + expert index, so that the ranks that exchange routed rows are neighbours.
///
/// Experts are sharded over `expert` and replicated over `data`; all other parameters are replicated over
/// `world`.
class Mesh {
 public:
  /// Collective over `world`. Throws UsageError unless `expert_size` divides the world's size.
  Mesh(const Communicator& world, int expert_size);
  /// Of groups that exist already.
  Mesh(Communicator world, Communicator expert, Communicator data);

  MeshPosition position() const { return {world_.size(), world_.rank(), expert_.size()}; }
  const Communicator& group(MeshAxis axis) const {
    return axis == MeshAxis::world ? world_ : axis == MeshAxis::expert ? expert_ : data_;
  }
  const Communicator& world() const { return world_; }
  const Communicator& expert() const { return expert_; }  // this rank's row: same data index
  const Communicator& data() const { return data_; }      // this rank's column: same expert index

  /// By MeshAxis; nullptr for an axis of one rank, and where plans run on CPUs.
  using DeviceGroups = std::array<std::shared_ptr<DeviceCommunicator>, 3>;
  void set_device_groups(DeviceGroups groups) { device_groups_ = std::move(groups); }
  DeviceCommunicator* on_device(MeshAxis axis) const {
    return device_groups_[static_cast<std::size_t>(axis)].get();
  }
  /// DeviceCommunicator::forget_addresses and generation of all of them.
  void forget_device_addresses() const;
  std::uint64_t device_generation() const;

 private:
  Communicator world_, expert_, data_;
  DeviceGroups device_groups_;
};

/// The mesh of one rank.
inline Mesh make_self_mesh() {
  return {make_self_communicator(), 1};
}

}  // namespace farskip
