// SPDX-License-Identifier: Apache-2.0
#pragma once
// Return codes of the CUDA runtime: anything but success is an InternalError with the place and the name.
// Those of the libraries: library_check.h.

#include <cuda_runtime_api.h>

#include "farskip/base/error.h"

namespace farskip::cuda {

[[noreturn]] void fail_call(cudaError_t status, const char* file, int line);
[[noreturn]] void fail_launch(cudaError_t status, const void* kernel);

inline void check_call(cudaError_t status, const char* file, int line) {
  if (status != cudaSuccess) fail_call(status, file, line);
}

}  // namespace farskip::cuda

/// Of any call of the CUDA runtime, or of a library.
#define FARSKIP_CUDA_CHECK(call) ::farskip::cuda::check_call((call), __FILE__, __LINE__)
/// After every launch: errors of the launch itself (not of the kernel, which has not run yet).
#define FARSKIP_CUDA_CHECK_LAUNCH() FARSKIP_CUDA_CHECK(cudaGetLastError())
