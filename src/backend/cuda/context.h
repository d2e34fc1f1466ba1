// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a CUDA kernel needs besides its tensors. Plain declarations: no CUDA header is included here, so that
// everything above the kernels builds without the toolkit.

#include <cstddef>

struct CUstream_st;
struct cublasLtContext;
struct cudnnContext;

namespace farskip::cuda {

class LibraryPlans;  // what cuBLASLt and cuDNN chose for a problem, by problem (src/backend/cuda/)

/// Of one device and one stream; lives as long as the device.
struct LaunchContext {
  CUstream_st* stream = nullptr;  // cudaStream_t to launch on; kernels never synchronise it
  cublasLtContext* blas = nullptr;
  cudnnContext* dnn = nullptr;
  LibraryPlans* plans = nullptr;
  int num_multiprocessors = 0;
};

}  // namespace farskip::cuda
