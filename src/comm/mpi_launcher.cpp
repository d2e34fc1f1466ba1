// SPDX-License-Identifier: Apache-2.0
#include "base/environment.h"
#include "comm/mpi.h"

namespace farskip {

bool started_by_mpi_launcher() {
  return launcher_place().has_value();
}

}  // namespace farskip
