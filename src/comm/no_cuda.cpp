// SPDX-License-Identifier: Apache-2.0
// Linked where the build found no CUDA toolkit, or was told to leave it out: no device is there to ask for
// these.
#include "farskip/comm/device_communicator.h"

namespace farskip {

std::shared_ptr<DeviceCommunicator> make_nccl_communicator(const Communicator& group, int) {
  throw InternalError(group.name() + ": this build has no GPUs");
}

std::shared_ptr<DeviceCommunicator> make_copy_engine_communicator(const Communicator& group, int) {
  throw InternalError(group.name() + ": this build has no GPUs");
}

std::string why_no_copy_engines(const Communicator&, int, bool) {
  return "this build has no GPUs";
}

std::shared_ptr<DeviceCommunicator> make_emulated_communicator(int, int, const std::string& name, int,
                                                               double) {
  throw InternalError(name + ": this build has no GPUs");
}

}  // namespace farskip
