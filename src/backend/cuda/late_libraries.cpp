// SPDX-License-Identifier: Apache-2.0
// The functions of cuBLASLt and NVRTC that this program and cuDNN's frontend call, under their own names:
// each calls the one in the library.
#include "backend/cuda/late_libraries.h"

#include <cublasLt.h>
#include <dlfcn.h>
#include <nvrtc.h>

#include "farskip/base/error.h"

namespace farskip::cuda {
namespace {

/// Where the loader looks, else where the library was at build time.
void* load(const char* name) {
  const std::string built_with = fmt::format("{}/{}", FARSKIP_CUDA_LIBRARY_DIR, name);
  for (const char* file : {name, built_with.c_str()})
    if (void* library = dlopen(file, RTLD_NOW | RTLD_GLOBAL); library != nullptr) return library;
  throw UsageError(
      fmt::format("a library of CUDA {} is not found: {}; install the toolkit's libraries, add their folder "
                  "to LD_LIBRARY_PATH, or "
                  "use the CPU (device=cpu, or --device cpu)",
                  CUBLAS_VER_MAJOR, dlerror()));
}

void* cublas_lt() {
  static void* const library = load(fmt::format("libcublasLt.so.{}", CUBLAS_VER_MAJOR).c_str());
  return library;
}
void* nvrtc() {
  static void* const library = load(fmt::format("libnvrtc.so.{}", CUBLAS_VER_MAJOR).c_str());
  return library;
}

/// Calls the function `name` of the library; `own` is the one here, of the same type.
template <auto own, class... Arguments>
auto call(void* library(), const char* name, Arguments... arguments) {
  static const auto found = reinterpret_cast<decltype(own)>(dlsym(library(), name));
  FARSKIP_CHECK(found != nullptr, "a CUDA library lacks {}", name);
  return found(arguments...);
}

}  // namespace

void load_libraries() {
  cublas_lt();
  nvrtc();
}

}  // namespace farskip::cuda

using namespace farskip::cuda;

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  return call<&cublasLtCreate>(cublas_lt, "cublasLtCreate", handle);
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  return call<&cublasLtDestroy>(cublas_lt, "cublasLtDestroy", handle);
}
std::size_t cublasLtGetVersion() {
  return call<&cublasLtGetVersion>(cublas_lt, "cublasLtGetVersion");
}
const char* cublasLtGetStatusString(cublasStatus_t status) {
  return call<&cublasLtGetStatusString>(cublas_lt, "cublasLtGetStatusString", status);
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                          std::uint64_t rows, std::uint64_t columns, std::int64_t ld) {
  return call<&cublasLtMatrixLayoutCreate>(cublas_lt, "cublasLtMatrixLayoutCreate", layout, type, rows,
                                           columns, ld);
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  return call<&cublasLtMatrixLayoutDestroy>(cublas_lt, "cublasLtMatrixLayoutDestroy", layout);
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void* value,
                                                std::size_t bytes) {
  return call<&cublasLtMatrixLayoutSetAttribute>(cublas_lt, "cublasLtMatrixLayoutSetAttribute", layout,
                                                 attribute, value, bytes);
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* operation, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  return call<&cublasLtMatmulDescCreate>(cublas_lt, "cublasLtMatmulDescCreate", operation, compute, scale);
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t operation) {
  return call<&cublasLtMatmulDescDestroy>(cublas_lt, "cublasLtMatmulDescDestroy", operation);
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t operation,
                                              cublasLtMatmulDescAttributes_t attribute, const void* value,
                                              std::size_t bytes) {
  return call<&cublasLtMatmulDescSetAttribute>(cublas_lt, "cublasLtMatmulDescSetAttribute", operation,
                                               attribute, value, bytes);
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  return call<&cublasLtMatmulPreferenceCreate>(cublas_lt, "cublasLtMatmulPreferenceCreate", preference);
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  return call<&cublasLtMatmulPreferenceDestroy>(cublas_lt, "cublasLtMatmulPreferenceDestroy", preference);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, std::size_t bytes) {
  return call<&cublasLtMatmulPreferenceSetAttribute>(cublas_lt, "cublasLtMatmulPreferenceSetAttribute",
                                                     preference, attribute, value, bytes);
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(
    cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a_layout,
    cublasLtMatrixLayout_t b_layout, cublasLtMatrixLayout_t c_layout, cublasLtMatrixLayout_t d_layout,
    cublasLtMatmulPreference_t preference, int most, cublasLtMatmulHeuristicResult_t* found, int* num_found) {
  return call<&cublasLtMatmulAlgoGetHeuristic>(cublas_lt, "cublasLtMatmulAlgoGetHeuristic", handle, operation,
                                               a_layout, b_layout, c_layout, d_layout, preference, most,
                                               found, num_found);
}
cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algorithm, void* workspace, std::size_t bytes,
                              cudaStream_t stream) {
  return call<&cublasLtMatmul>(cublas_lt, "cublasLtMatmul", handle, operation, alpha, a, a_layout, b,
                               b_layout, beta, c, c_layout, d, d_layout, algorithm, workspace, bytes, stream);
}
nvrtcResult nvrtcCreateProgram(nvrtcProgram* program, const char* source, const char* name, int num_headers,
                               const char* const* headers, const char* const* include_names) {
  return call<&nvrtcCreateProgram>(nvrtc, "nvrtcCreateProgram", program, source, name, num_headers, headers,
                                   include_names);
}
nvrtcResult nvrtcDestroyProgram(nvrtcProgram* program) {
  return call<&nvrtcDestroyProgram>(nvrtc, "nvrtcDestroyProgram", program);
}
nvrtcResult nvrtcCompileProgram(nvrtcProgram program, int num_options, const char* const* options) {
  return call<&nvrtcCompileProgram>(nvrtc, "nvrtcCompileProgram", program, num_options, options);
}
nvrtcResult nvrtcGetProgramLogSize(nvrtcProgram program, std::size_t* bytes) {
  return call<&nvrtcGetProgramLogSize>(nvrtc, "nvrtcGetProgramLogSize", program, bytes);
}
nvrtcResult nvrtcGetProgramLog(nvrtcProgram program, char* log) {
  return call<&nvrtcGetProgramLog>(nvrtc, "nvrtcGetProgramLog", program, log);
}
nvrtcResult nvrtcGetCUBINSize(nvrtcProgram program, std::size_t* bytes) {
  return call<&nvrtcGetCUBINSize>(nvrtc, "nvrtcGetCUBINSize", program, bytes);
}
nvrtcResult nvrtcGetCUBIN(nvrtcProgram program, char* cubin) {
  return call<&nvrtcGetCUBIN>(nvrtc, "nvrtcGetCUBIN", program, cubin);
}
