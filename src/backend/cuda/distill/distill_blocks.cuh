// SPDX-License-Identifier: Apache-2.0
#pragma once
// What the losses of distillation over a whole vocabulary (distill_loss.cu) and over a part of one
// (distill_parts.cu) have in common: products with the head for one block of tokens, rows in shared memory,
// and sums over all tokens.
#include "backend/cuda/launch.cuh"
#include "backend/cuda/product.h"
#include "ops/distill_ops.h"

namespace farskip::cuda {
namespace {

using ops::DistillLoss;

constexpr int kSumThreads = 1024;
constexpr std::size_t kMaxStaged = 208 << 10;  // of the 227 KiB a block of sm_90 may have

constexpr int kNumStats = static_cast<int>(ops::kDistillStats.size());

/// What each token adds to the loss and to each of kDistillStats: column by column, num_tokens in each.
struct TokenResults {
  double* columns;
  std::int64_t num_tokens;

  __device__ void store(std::int64_t token, const DistillLoss& a, const double (&stats)[kNumStats]) const {
    const double divergence = a.kl * stats[0] + a.reverse_kl * stats[1] + a.jsd * stats[2];
    columns[token] = a.temperature * a.temperature * divergence + a.sft * stats[3];
#pragma unroll
    for (int i = 0; i < kNumStats; ++i) columns[(i + 1) * num_tokens + token] = stats[i];
  }
  __device__ void store_all(std::int64_t token, double value) const {
    for (int i = 0; i <= kNumStats; ++i) columns[i * num_tokens + token] = value;
  }
};

/// One block a column, in one order, whatever the blocks of tokens were.
__global__ void __launch_bounds__(kSumThreads)
    sum_results_kernel(TokenResults results, float* loss_sum, double* stats) {
  __shared__ double shared[kSumThreads / 32];
  const double* column = results.columns + blockIdx.x * results.num_tokens;
  double sum = 0.0;
  for (std::int64_t t = threadIdx.x; t < results.num_tokens; t += kSumThreads) sum += column[t];
  sum = block_sum<kSumThreads>(sum, shared);
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0)
    *loss_sum = static_cast<float>(sum);
  else
    stats[blockIdx.x - 1] = sum;
}

/// The row itself, or, where it fits, its copy in shared memory.
__device__ inline float* stage_row(float* row, std::int64_t leading, bool fits, float* to) {
  if (!fits) return row;
  for (std::int64_t i = 4 * threadIdx.x; i < leading; i += 4 * blockDim.x)
    *reinterpret_cast<float4*>(to + i) = *reinterpret_cast<const float4*>(row + i);
  __syncthreads();
  return to;
}

/// Shared memory for so many rows; 0: they do not fit. The kernel is told to take it.
template <class Kernel>
std::size_t staged_bytes(Kernel kernel, int rows, std::int64_t leading) {
  const std::size_t bytes =
      static_cast<std::size_t>(rows) * static_cast<std::size_t>(leading) * sizeof(float);
  if (bytes > kMaxStaged) return 0;
  FARSKIP_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kMaxStaged)));
  return bytes;
}

/// Rows [first, …) of a matrix.
std::byte* row_of(const TensorView& matrix, std::int64_t first) {
  return static_cast<std::byte*>(matrix.data) + first * matrix.shape.back() * dtype_size(matrix.dtype);
}

/// Products of h[T, hidden] with a head w[vocabulary, hidden], for tokens [first, first + count).
struct HeadProducts {
  const LaunchContext& gpu;
  std::span<std::byte> workspace;
  const TensorView &h, &w;
  std::int64_t leading;  // from one row of logits to the next

  void compute_logits(std::int64_t first, std::int64_t count, float* logits) const {
    multiply(gpu,
             {.transpose_b = true,
              .m = count,
              .n = w.shape[0],
              .k = h.shape.back(),
              .in = h.dtype,
              .out = DType::f32,
              .a = row_of(h, first),
              .lda = h.shape.back(),
              .b = w.data,
              .ldb = h.shape.back(),
              .c = logits,
              .ldc = leading},
             workspace);
  }
  /// The rows of dh from the gradient of the logits, of the type of h.
  void differentiate_hidden(std::int64_t first, std::int64_t count, const void* dlogits,
                            const TensorView& dh) const {
    if (count == 0) return;
    multiply(gpu,
             {.m = count,
              .n = h.shape.back(),
              .k = w.shape[0],
              .in = h.dtype,
              .out = h.dtype,
              .a = dlogits,
              .lda = leading,
              .b = w.data,
              .ldb = h.shape.back(),
              .c = row_of(dh, first),
              .ldc = h.shape.back()},
             workspace);
  }
  /// What these tokens add to `dw_so_far` (may be dw itself, or nullptr).
  void differentiate_head(std::int64_t first, std::int64_t count, const void* dlogits, const void* dw_so_far,
                          const TensorView& dw) const {
    multiply(gpu,
             {.transpose_a = true,
              .m = w.shape[0],
              .n = h.shape.back(),
              .k = count,
              .in = h.dtype,
              .out = DType::f32,
              .a = dlogits,
              .lda = leading,
              .b = row_of(h, first),
              .ldb = h.shape.back(),
              .c = dw.data,
              .ldc = h.shape.back(),
              .accumulate = dw_so_far},
             workspace);
  }
};

}  // namespace
}  // namespace farskip::cuda
