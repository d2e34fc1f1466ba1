// SPDX-License-Identifier: Apache-2.0
#include "farskip/backend/device.h"

namespace farskip {

void Device::begin_recording() {
  throw InternalError(fmt::format("{} records no work", name()));
}

std::unique_ptr<Recording> Device::end_recording() {
  throw InternalError(fmt::format("{} records no work", name()));
}

}  // namespace farskip
