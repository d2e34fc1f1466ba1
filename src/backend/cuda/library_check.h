// SPDX-License-Identifier: Apache-2.0
#pragma once
// FARSKIP_CUDA_CHECK of calls of cuBLASLt and cuDNN, whose headers kernels need not read.

#include <cublasLt.h>
#include <cudnn.h>

#include "backend/cuda/check.h"

namespace farskip::cuda {

[[noreturn]] void fail_call(cublasStatus_t status, const char* file, int line);
[[noreturn]] void fail_call(cudnnStatus_t status, const char* file, int line);

inline void check_call(cublasStatus_t status, const char* file, int line) {
  if (status != CUBLAS_STATUS_SUCCESS) fail_call(status, file, line);
}
inline void check_call(cudnnStatus_t status, const char* file, int line) {
  if (status != CUDNN_STATUS_SUCCESS) fail_call(status, file, line);
}

}  // namespace farskip::cuda
