// SPDX-License-Identifier: Apache-2.0
#pragma once
// Return codes of CUDA in transports.

#include <cuda_runtime_api.h>

#include <string>

#include "farskip/comm/communicator.h"

namespace farskip {

inline void check_transport(cudaError_t status, const std::string& group) {
  if (status == cudaSuccess) return;
  throw CommunicationError(
      fmt::format("{}: {} ({})", group, cudaGetErrorName(status), cudaGetErrorString(status)));
}

}  // namespace farskip
