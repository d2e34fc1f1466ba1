// SPDX-License-Identifier: Apache-2.0
#include "backend/cuda/product.h"

#include <algorithm>

#include "backend/cuda/handle.h"
#include "backend/cuda/library_check.h"
#include "backend/cuda/library_plans.h"

namespace farskip::cuda {
namespace {

using Layout = Handle<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;

struct ProductPlan {
  Handle<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy> operation;
  Layout a, b, c;
  cublasLtMatmulAlgo_t algorithm{};
};

cudaDataType_t data_type(DType dtype) {
  return dtype == DType::bf16 ? CUDA_R_16BF : CUDA_R_32F;
}

/// Largest power of two, up to 256, that divides the addresses of the matrices, the next of which is `stride`
/// elements on: kernels with wide loads need it.
std::uint32_t alignment_of(const void* p, std::int64_t stride, DType dtype) {
  const auto address =
      reinterpret_cast<std::uintptr_t>(p) | static_cast<std::uintptr_t>(stride) * dtype_size(dtype) | 256;
  return static_cast<std::uint32_t>(address & -address);
}

struct Alignments {
  std::uint32_t a, b, c;
};

Alignments alignments_of(const Product& p) {
  const void* source = p.accumulate != nullptr ? p.accumulate : p.c;
  return {alignment_of(p.a, p.stride_a, p.in), alignment_of(p.b, p.stride_b, p.in),
          std::min(alignment_of(p.c, p.stride_c, p.out), alignment_of(source, p.stride_c, p.out))};
}

/// A row-major [rows, columns] is a column-major [columns, rows].
void create_layout(Layout& layout, DType dtype, std::int64_t rows, std::int64_t columns, std::int64_t ld,
                   std::int64_t batches, std::int64_t stride) {
  FARSKIP_CUDA_CHECK(cublasLtMatrixLayoutCreate(layout.address(), data_type(dtype),
                                                static_cast<std::uint64_t>(columns),
                                                static_cast<std::uint64_t>(rows), ld));
  if (batches == 1) return;
  const auto count = static_cast<std::int32_t>(batches);
  FARSKIP_CUDA_CHECK(cublasLtMatrixLayoutSetAttribute(layout.get(), CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
                                                      &count, sizeof(count)));
  FARSKIP_CUDA_CHECK(cublasLtMatrixLayoutSetAttribute(
      layout.get(), CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof(stride)));
}

template <class T>
void set_preference(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
                    const T& value) {
  FARSKIP_CUDA_CHECK(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)));
}

void choose_algorithm(cublasLtHandle_t handle, const Alignments& aligned, std::size_t workspace,
                      ProductPlan& plan) {
  Handle<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy> preference;
  FARSKIP_CUDA_CHECK(cublasLtMatmulPreferenceCreate(preference.address()));
  set_preference(preference.get(), CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{workspace});
  // Parts of a split sum are added in one further pass, in order.
  set_preference(preference.get(), CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                 static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  // Layouts are swapped: see create_plan.
  set_preference(preference.get(), CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, aligned.b);
  set_preference(preference.get(), CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, aligned.a);
  set_preference(preference.get(), CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, aligned.c);
  set_preference(preference.get(), CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, aligned.c);
  cublasLtMatmulHeuristicResult_t found{};
  int num_found = 0;
  FARSKIP_CUDA_CHECK(cublasLtMatmulAlgoGetHeuristic(handle, plan.operation.get(), plan.a.get(), plan.b.get(),
                                                    plan.c.get(), plan.c.get(), preference.get(), 1, &found,
                                                    &num_found));
  FARSKIP_CHECK(num_found == 1, "cuBLASLt has no algorithm for a product");
  FARSKIP_CUDA_CHECK(found.state);
  plan.algorithm = found.algo;
}

/// cuBLASLt is column-major: its transposed view of c is op(b)ᵀ · op(a)ᵀ, so a and b change places.
std::shared_ptr<ProductPlan> create_plan(cublasLtHandle_t handle, const Product& p, const Alignments& aligned,
                                         std::size_t workspace) {
  auto plan = std::make_shared<ProductPlan>();
  FARSKIP_CUDA_CHECK(cublasLtMatmulDescCreate(plan->operation.address(), CUBLAS_COMPUTE_32F, CUDA_R_32F));
  const cublasOperation_t left = p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
  const cublasOperation_t right = p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
  FARSKIP_CUDA_CHECK(cublasLtMatmulDescSetAttribute(plan->operation.get(), CUBLASLT_MATMUL_DESC_TRANSA, &left,
                                                    sizeof(left)));
  FARSKIP_CUDA_CHECK(cublasLtMatmulDescSetAttribute(plan->operation.get(), CUBLASLT_MATMUL_DESC_TRANSB,
                                                    &right, sizeof(right)));
  create_layout(plan->a, p.in, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n, p.ldb, p.batches,
                p.stride_b);
  create_layout(plan->b, p.in, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k, p.lda, p.batches,
                p.stride_a);
  create_layout(plan->c, p.out, p.m, p.n, p.ldc, p.batches, p.stride_c);
  choose_algorithm(handle, aligned, workspace, *plan);
  return plan;
}

/// Without depth the product is zero: c is the accumulated matrix, or zeros.
void copy_or_clear(const LaunchContext& gpu, const Product& p) {
  const std::size_t element = dtype_size(p.out), width = static_cast<std::size_t>(p.n) * element;
  const std::size_t pitch = static_cast<std::size_t>(p.ldc) * element, rows = static_cast<std::size_t>(p.m);
  if (p.accumulate == nullptr) {
    FARSKIP_CUDA_CHECK(cudaMemset2DAsync(p.c, pitch, 0, width, rows, gpu.stream));
  } else if (p.accumulate != p.c) {
    FARSKIP_CUDA_CHECK(cudaMemcpy2DAsync(p.c, pitch, p.accumulate, pitch, width, rows,
                                         cudaMemcpyDeviceToDevice, gpu.stream));
  }
}

}  // namespace

void multiply(const LaunchContext& gpu, const Product& p, std::span<std::byte> workspace) {
  FARSKIP_CHECK(p.out == DType::f32 || (p.out == DType::bf16 && p.in == DType::bf16), "product of {} in {}",
                dtype_name(p.in), dtype_name(p.out));
  FARSKIP_CHECK(p.out == DType::f32 || p.accumulate == nullptr || p.accumulate != p.c, "a bf16 sum in place");
  if (p.m == 0 || p.n == 0) return;
  FARSKIP_CHECK(p.k > 0 || (p.beta == 1.0F && p.batches == 1), "a product without depth");
  if (p.k == 0) return copy_or_clear(gpu, p);
  const Alignments aligned = alignments_of(p);
  const bool accumulate = p.accumulate != nullptr;
  const std::string problem =
      fmt::format("product {}{} {}x{}x{} ld {} {} {} batches {} {} {} {} {} {} aligned {} {} {} workspace {}",
                  p.transpose_a ? 't' : 'n', p.transpose_b ? 't' : 'n', p.m, p.n, p.k, p.lda, p.ldb, p.ldc,
                  p.batches, p.stride_a, p.stride_b, p.stride_c, dtype_name(p.in), dtype_name(p.out),
                  aligned.a, aligned.b, aligned.c, workspace.size());
  ProductPlan& plan = gpu.plans->get<ProductPlan>(
      problem, [&] { return create_plan(gpu.blas, p, aligned, workspace.size()); });
  const float beta = accumulate ? p.beta : 0.0F;
  FARSKIP_CUDA_CHECK(cublasLtMatmul(gpu.blas, plan.operation.get(), &p.alpha, p.b, plan.a.get(), p.a,
                                    plan.b.get(), &beta, accumulate ? p.accumulate : p.c, plan.c.get(), p.c,
                                    plan.c.get(), &plan.algorithm, workspace.data(), workspace.size(),
                                    gpu.stream));
}

}  // namespace farskip::cuda
