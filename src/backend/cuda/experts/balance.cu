// SPDX-License-Identifier: Apache-2.0
// Load-balancing loss (DeepSeek-V2, arXiv 2405.04434, eq. 23-25), one term per sequence.
#include "backend/balance_sizes.h"
#include "backend/cuda/launch.cuh"
#include "farskip/ops/ops.h"

namespace farskip {
namespace cuda {
namespace {

constexpr int kTokensPerBlock = 32;
constexpr int kSlotsPerBlock = 2048;

/// A sequence is computed in blocks of tokens; and what each part of the workspace needs.
struct Sizes : BalanceSizes {
  Sizes(const ops::BalanceLoss& a, const Shape& scores, const Shape& indices)
      : BalanceSizes(a, scores, indices),
        blocks(ceil_div(a.sequence_length, kTokensPerBlock)),
        normalize(a.normalize_scores) {}

  std::size_t partial_bytes() const {  // double [sequences * blocks, E]
    return static_cast<std::size_t>(sequences * blocks * num_experts) * sizeof(double);
  }
  std::size_t loss_bytes() const { return static_cast<std::size_t>(sequences) * sizeof(double); }
  std::size_t count_bytes() const {  // i32 [sequences, E]
    return static_cast<std::size_t>(sequences * num_experts) * sizeof(std::int32_t);
  }

  std::int64_t blocks;
  bool normalize;
};

/// counts[sequence, e] += times e was chosen. Integers: the order of the additions does not matter.
__global__ void __launch_bounds__(kThreads)
    count_choices_kernel(const std::int32_t* indices, std::int32_t* counts, Sizes s) {
  const std::int64_t slots = s.length * s.top_k,
                     begin = static_cast<std::int64_t>(blockIdx.y) * kSlotsPerBlock;
  const std::int64_t sequence = blockIdx.x;
  for (std::int64_t i = begin + threadIdx.x; i < min(slots, begin + kSlotsPerBlock); i += kThreads) {
    const std::int32_t expert = indices[sequence * slots + i];
    if (expert < 0 || expert >= s.num_experts) __trap();
    atomicAdd(counts + sequence * s.num_experts + expert, 1);
  }
}

void count_choices(const KernelCall& call, const std::int32_t* indices, std::int32_t* counts,
                   const Sizes& s) {
  FARSKIP_CUDA_CHECK(cudaMemsetAsync(counts, 0, s.count_bytes(), call.gpu->stream));
  launch(call, count_choices_kernel,
         dim3(grid_size(s.sequences), grid_size(ceil_div(s.length * s.top_k, kSlotsPerBlock))), kThreads, 0,
         indices, counts, s);
}

/// 1, or 1 / Σ of a token's scores, in every lane of a warp.
__device__ __forceinline__ float score_scale(const float* scores, const Sizes& s) {
  if (!s.normalize) return 1.0F;
  float sum = 0.0F;
  for (std::int64_t e = threadIdx.x % 32; e < s.num_experts; e += 32) sum += scores[e];
  return 1.0F / (warp_sum(sum) + kTinyScoreSum);
}

/// partial[block, e] = Σ over the block's tokens of e's score.
__global__ void __launch_bounds__(kThreads) sum_scores_kernel(const float* scores, double* partial, Sizes s) {
  __shared__ float scales[kTokensPerBlock];
  const std::int64_t sequence = blockIdx.x / s.blocks, first = blockIdx.x % s.blocks * kTokensPerBlock;
  const int tokens = static_cast<int>(min(static_cast<std::int64_t>(kTokensPerBlock), s.length - first));
  const float* rows = scores + (sequence * s.length + first) * s.num_experts;
  for (int t = static_cast<int>(threadIdx.x) / 32; t < tokens; t += kWarpsPerBlock) {
    const float scale = score_scale(rows + t * s.num_experts, s);
    if (threadIdx.x % 32 == 0) scales[t] = scale;
  }
  __syncthreads();
  for (std::int64_t e = threadIdx.x; e < s.num_experts; e += kThreads) {
    double sum = 0.0;
    for (int t = 0; t < tokens; ++t) sum += static_cast<double>(rows[t * s.num_experts + e] * scales[t]);
    partial[blockIdx.x * s.num_experts + e] = sum;
  }
}

/// losses[sequence] = Σ_e counts · Σ over blocks of partial. One block a sequence, a warp for every eighth
/// expert.
__global__ void __launch_bounds__(kThreads)
    sequence_loss_kernel(const double* partial, const std::int32_t* counts, double* losses, Sizes s) {
  __shared__ double shared[kWarpsPerBlock];
  const std::int64_t sequence = blockIdx.x;
  double loss = 0.0;
  for (std::int64_t e = threadIdx.x / 32; e < s.num_experts; e += kWarpsPerBlock) {
    double sum = 0.0;
    for (std::int64_t block = threadIdx.x % 32; block < s.blocks; block += 32)
      sum += partial[(sequence * s.blocks + block) * s.num_experts + e];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) loss += sum * static_cast<double>(counts[sequence * s.num_experts + e]);
  }
  loss = block_sum<kThreads>(loss, shared);
  if (threadIdx.x == 0) losses[sequence] = loss;
}

__global__ void total_loss_kernel(const double* losses, std::int64_t sequences, double factor, float* loss) {
  double sum = 0.0;
  for (std::int64_t i = threadIdx.x; i < sequences; i += 32) sum += losses[i];
  sum = warp_sum(sum);
  if (threadIdx.x == 0) *loss = static_cast<float>(sum * factor);
}

std::size_t balance_loss_workspace(const OpTypes& types) {
  const Sizes s(types.get<ops::BalanceLoss>(), types.shape(0), types.shape(1));
  return s.partial_bytes() + s.loss_bytes() + s.count_bytes();
}

// scores[T, E], indices[T, K] → [1]
void run_balance_loss(const KernelCall& call) {
  const Sizes s(call.get<ops::BalanceLoss>(), call.in_shape(0), call.in_shape(1));
  auto* partial = reinterpret_cast<double*>(call.workspace.data());
  auto* losses = reinterpret_cast<double*>(call.workspace.data() + s.partial_bytes());
  auto* counts = reinterpret_cast<std::int32_t*>(call.workspace.data() + s.partial_bytes() + s.loss_bytes());
  if (s.sequences > 0) count_choices(call, call.in<std::int32_t>(1), counts, s);
  launch(call, sum_scores_kernel, grid_size(s.sequences * s.blocks), kThreads, 0, call.in(0), partial, s);
  launch(call, sequence_loss_kernel, grid_size(s.sequences), kThreads, 0, partial, counts, losses, s);
  launch(call, total_loss_kernel, 1, 32, 0, losses, s.sequences, s.loss_factor(), call.out(0));
}

/// With p the (normalised) scores of a token, dloss/dp_e = g_e = dloss f_e / S; through p = s / Σs:
/// ds_e = (g_e - Σ g p) / Σs. One warp a token.
__global__ void __launch_bounds__(kThreads)
    balance_grad_kernel(const float* dloss, const float* scores, const std::int32_t* counts, float* d_scores,
                        double loss_factor, Sizes s) {
  const std::int64_t token = warp_row();
  if (token >= s.sequences * s.length) return;
  const auto factor = static_cast<float>(static_cast<double>(*dloss) * loss_factor);
  const std::int32_t* chosen = counts + token / s.length * s.num_experts;
  const float* row = scores + token * s.num_experts;
  const float scale = score_scale(row, s);
  float dot = 0.0F;
  if (s.normalize) {
    for (std::int64_t e = threadIdx.x % 32; e < s.num_experts; e += 32)
      dot += static_cast<float>(chosen[e]) * factor * row[e];
    dot = warp_sum(dot) * scale;
  }
  for (std::int64_t e = threadIdx.x % 32; e < s.num_experts; e += 32)
    d_scores[token * s.num_experts + e] = (static_cast<float>(chosen[e]) * factor - dot) * scale;
}

std::size_t balance_loss_grad_workspace(const OpTypes& types) {
  return Sizes(types.get<ops::BalanceLoss>(), types.shape(1), types.shape(2)).count_bytes();
}

// dloss[1], scores[T, E], indices[T, K] → dscores[T, E]
void run_balance_loss_grad(const KernelCall& call) {
  const Sizes s(call.get<ops::BalanceLoss>(), call.in_shape(1), call.in_shape(2));
  if (s.sequences == 0) return;
  auto* counts = reinterpret_cast<std::int32_t*>(call.workspace.data());
  count_choices(call, call.in<std::int32_t>(2), counts, s);
  launch(call, balance_grad_kernel, warp_row_grid(s.sequences * s.length), kThreads, 0, call.in(0),
         call.in(1), counts, call.out(0), s.loss_factor(), s);
}

}  // namespace
}  // namespace cuda

void register_cuda_balance(KernelTable& table);
void register_cuda_balance(KernelTable& table) {
  table.add("balance_loss", DType::f32, DeviceKind::cuda,
            {.run = cuda::run_balance_loss, .workspace = cuda::balance_loss_workspace});
  table.add("balance_loss_grad", DType::f32, DeviceKind::cuda,
            {.run = cuda::run_balance_loss_grad, .workspace = cuda::balance_loss_grad_workspace});
}

}  // namespace farskip
