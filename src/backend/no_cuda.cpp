// SPDX-License-Identifier: Apache-2.0
// Linked where the build found no CUDA toolkit, or was told to leave it out.
#include "backend/cuda/info.h"
#include "farskip/backend/device.h"

namespace farskip {
namespace {

constexpr const char* kMissing =
    "this build of farskip has no CUDA backend; install the CUDA Toolkit 13 and cuDNN 9, and build again "
    "with -DFARSKIP_CUDA=ON (third_party/README.md), or use the CPU (device=cpu, or --device cpu)";

}  // namespace

const KernelTable& cuda_kernel_table() {
  static const KernelTable none;
  return none;
}

std::shared_ptr<Device> make_cuda_device(int) {
  throw UsageError(kMissing);
}

std::string why_no_cuda_device(int) noexcept {
  return kMissing;
}

cuda::Info cuda::info() {
  Info info;
  info.problem = kMissing;
  return info;
}

}  // namespace farskip
