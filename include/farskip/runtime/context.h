// SPDX-License-Identifier: Apache-2.0
#pragma once
// Where something runs.

#include <memory>

#include "farskip/base/heartbeat.h"
#include "farskip/base/log.h"
#include "farskip/comm/mesh.h"
#include "farskip/runtime/executor.h"

namespace farskip {

/// The ranks and the memory that something runs on, who is told that it lives, and who says what happens.
/// Cheap to copy; copies share the arena, so that plans of several engines use one block of memory in turn,
/// and results in it are valid until any of them runs.
struct Context {
  Mesh mesh = make_self_mesh();                              // connected on the arena's device
  std::shared_ptr<Arena> arena = std::make_shared<Arena>();  // never absent
  Heartbeat* heartbeat = nullptr;                            // may be absent
  Logger logger{};

  const std::shared_ptr<Device>& device() const { return arena->shared_device(); }
  const Communicator& world() const { return mesh.world(); }
  /// The same, with an arena for itself.
  Context with_own_arena() const { return {mesh, std::make_shared<Arena>(device()), heartbeat, logger}; }
};
/// One rank on this device.
Context make_context(std::shared_ptr<Device> device, Logger logger);

}  // namespace farskip
