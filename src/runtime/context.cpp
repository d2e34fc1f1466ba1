// SPDX-License-Identifier: Apache-2.0
#include "farskip/runtime/context.h"

namespace farskip {

Context make_context(std::shared_ptr<Device> device, Logger logger) {
  return {make_self_mesh(), std::make_shared<Arena>(std::move(device)), nullptr, std::move(logger)};
}

}  // namespace farskip
