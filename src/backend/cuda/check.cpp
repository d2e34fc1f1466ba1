// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/check.h"

#include "backend/cuda/library_check.h"

namespace farskip::cuda {
namespace {

[[noreturn]] void fail(const char* file, int line, const std::string& what) {
  throw InternalError(fmt::format("{}:{}: CUDA: {}", file, line, what));
}

std::string text_of(cudaError_t status) {
  return fmt::format("{} ({})", cudaGetErrorName(status), cudaGetErrorString(status));
}

}  // namespace

void fail_call(cudaError_t status, const char* file, int line) {
  fail(file, line, text_of(status));
}

void fail_call(cublasStatus_t status, const char* file, int line) {
  fail(file, line, cublasLtGetStatusString(status));
}

void fail_call(cudnnStatus_t status, const char* file, int line) {
  char detail[512] = "";
  cudnnGetLastErrorString(detail, sizeof(detail));
  fail(file, line, fmt::format("{} {}", cudnnGetErrorString(status), detail));
}

void fail_launch(cudaError_t status, const void* kernel) {
  const char* name = nullptr;
  if (cudaFuncGetName(&name, kernel) != cudaSuccess) name = "a kernel";
  throw InternalError(fmt::format("launch of {}: {}", name, text_of(status)));
}

}  // namespace farskip::cuda
