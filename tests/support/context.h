// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "farskip/runtime/context.h"

namespace farskip::test {

/// Without a word, in memory of its own.
inline Context quiet_context(Mesh mesh = make_self_mesh(), std::shared_ptr<Device> device = make_cpu_device(),
                             Heartbeat* heartbeat = nullptr) {
  return {std::move(mesh), std::make_shared<Arena>(std::move(device)), heartbeat, Logger(LogLevel::off)};
}

}  // namespace farskip::test
