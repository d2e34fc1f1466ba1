// SPDX-License-Identifier: Apache-2.0
#pragma once
// Return codes of the CUDA libraries: anything but success is an InternalError with the place and the name.

#include <cublasLt.h>
#include <cuda_runtime_api.h>
#include <cudnn.h>

#include "farskip/base/error.h"

namespace farskip::cuda {

[[noreturn]] inline void fail_call(const char* what, const char* file, int line) {
  throw InternalError(fmt::format("{}:{}: CUDA: {}", file, line, what));
}
inline void check_call(cudaError_t status, const char* file, int line) {
  if (status == cudaSuccess) return;
  fail_call(fmt::format("{} ({})", cudaGetErrorName(status), cudaGetErrorString(status)).c_str(), file, line);
}
inline void check_call(cublasStatus_t status, const char* file, int line) {
  if (status != CUBLAS_STATUS_SUCCESS) fail_call(cublasLtGetStatusString(status), file, line);
}
inline void check_call(cudnnStatus_t status, const char* file, int line) {
  if (status == CUDNN_STATUS_SUCCESS) return;
  char detail[512] = "";
  cudnnGetLastErrorString(detail, sizeof(detail));
  fail_call(fmt::format("{} {}", cudnnGetErrorString(status), detail).c_str(), file, line);
}

}  // namespace farskip::cuda

/// Of any CUDA runtime, cuBLASLt or cuDNN call.
#define FARSKIP_CUDA_CHECK(call) ::farskip::cuda::check_call((call), __FILE__, __LINE__)
/// After every launch: errors of the launch itself (not of the kernel, which has not run yet).
#define FARSKIP_CUDA_CHECK_LAUNCH() FARSKIP_CUDA_CHECK(cudaGetLastError())
