// SPDX-License-Identifier: Apache-2.0
// Which experts a token goes to, and with what weight. One warp a token; its scores stand in shared memory.
#include "backend/balance_sizes.h"
#include "backend/cuda/launch.cuh"
#include "farskip/ops/ops.h"

namespace farskip {
namespace cuda {
namespace {

constexpr float kLowest = -3.402823466e+38F;

__device__ __forceinline__ float excluded() {
  return __int_as_float(static_cast<int>(0xff800000U));  // -infinity
}

struct RouteArguments {
  const float *logits, *bias;
  std::int32_t* indices;
  float *weights, *scores;
  std::int64_t tokens;
  int num_experts, top_k, num_groups, top_groups;
  bool use_sigmoid, top2_sum, normalize, by_logits;
  float scaling;
};

/// Index of the largest value of a shared array (the first of equal ones), in every lane; it is then
/// excluded.
__device__ __forceinline__ int take_best(float* values, int n, int lane) {
  float best = excluded();
  int at = 0x7fffffff;
  for (int i = lane; i < n; i += 32)
    if (values[i] > best || at == 0x7fffffff) {
      best = values[i];
      at = i;
    }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(0xffffffffU, best, step);
    const int other_at = __shfl_xor_sync(0xffffffffU, at, step);
    if (other > best || (other == best && other_at < at)) {
      best = other;
      at = other_at;
    }
  }
  if (lane == 0) values[at] = excluded();
  __syncwarp();
  return at;
}

/// Leaves only the experts of the best groups in `choice`.
__device__ void keep_best_groups(float* choice, float* groups, const RouteArguments& a, int lane) {
  const int size = a.num_experts / a.num_groups;
  for (int g = lane; g < a.num_groups; g += 32) {
    float first = excluded(), second = excluded();
    for (int e = g * size; e < (g + 1) * size; ++e) {
      second = fmaxf(second, fminf(first, choice[e]));
      first = fmaxf(first, choice[e]);
    }
    // Never -infinity, the mark of a taken group: the sum of two lowest finite scores would be.
    groups[g] = fmaxf(a.top2_sum && size > 1 ? first + second : first, kLowest);
  }
  __syncwarp();
  for (int kept = 0; kept < a.top_groups; ++kept) take_best(groups, a.num_groups, lane);
  for (int e = lane; e < a.num_experts; e += 32)
    if (groups[e / size] != excluded()) choice[e] = excluded();
  __syncwarp();
}

/// Scores of a token; choice[E] gets a copy of them.
__device__ void compute_scores(const RouteArguments& a, std::int64_t token, float* choice, int lane) {
  const float* logits = a.logits + token * a.num_experts;
  float* scores = a.scores + token * a.num_experts;
  if (a.use_sigmoid) {
    for (int e = lane; e < a.num_experts; e += 32) scores[e] = choice[e] = 1.0F / (1.0F + expf(-logits[e]));
    return;
  }
  float largest = excluded();
  for (int e = lane; e < a.num_experts; e += 32) largest = fmaxf(largest, logits[e]);
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffU, largest, step));
  float sum = 0.0F;
  for (int e = lane; e < a.num_experts; e += 32) sum += choice[e] = expf(logits[e] - largest);
  sum = warp_sum(sum);
  for (int e = lane; e < a.num_experts; e += 32) scores[e] = choice[e] /= sum;
}

__global__ void route_kernel(RouteArguments a) {
  extern __shared__ float shared[];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / 32) + warp;
  if (token >= a.tokens) return;
  // Per warp: what is chosen by [E], the scores [E], one number per group.
  float* const choice = shared + warp * (2 * a.num_experts + a.num_groups);
  float* const scores = choice + a.num_experts;
  float* const groups = scores + a.num_experts;
  compute_scores(a, token, scores, lane);
  for (int e = lane; e < a.num_experts; e += 32) {
    const float by = a.by_logits ? a.logits[token * a.num_experts + e] : scores[e];
    const float value = a.bias != nullptr ? by + a.bias[e] : by;
    choice[e] = value > kLowest ? value : kLowest;  // NaN ranks last
  }
  __syncwarp();
  if (a.top_groups < a.num_groups) keep_best_groups(choice, groups, a, lane);

  std::int32_t* indices = a.indices + token * a.top_k;
  float* weights = a.weights + token * a.top_k;
  float sum = 0.0F;
  for (int k = 0; k < a.top_k; ++k) {
    const int expert = take_best(choice, a.num_experts, lane);
    sum += scores[expert];
    if (lane == 0) indices[k] = expert;
  }
  __syncwarp();
  for (int k = lane; k < a.top_k; k += 32) {
    const float weight = scores[indices[k]];
    weights[k] = a.scaling * (a.normalize ? weight / (sum + kTinyScoreSum) : weight);
  }
}

/// Warps of a block such that their shared memory fits what every block may have.
struct RouteLaunch {
  RouteLaunch(std::int64_t tokens, std::int64_t floats_per_warp) {
    constexpr std::int64_t most_bytes = 48 << 10;
    const std::int64_t bytes = std::max<std::int64_t>(floats_per_warp * 4, 1);
    FARSKIP_CHECK(bytes <= most_bytes, "{} bytes of shared memory for the router of one token", bytes);
    const std::int64_t warps = std::min<std::int64_t>(kWarpsPerBlock, most_bytes / bytes);
    threads = static_cast<unsigned>(32 * warps);
    blocks = grid_size(ceil_div(tokens, warps));
    shared_bytes = static_cast<std::size_t>(bytes * warps);
  }
  unsigned threads, blocks;
  std::size_t shared_bytes;
};

// logits[T, E], [bias[E]] → indices[T, K], weights[T, K], scores[T, E]
void run_route(const KernelCall& call) {
  const auto& a = call.get<ops::Route>();
  const std::int64_t tokens = call.in_shape(0)[0], num_experts = call.in_shape(0)[1];
  const RouteLaunch shape(tokens, 2 * num_experts + a.num_groups);
  launch(call, route_kernel, shape.blocks, shape.threads, shape.shared_bytes,
         RouteArguments{.logits = call.in(0),
                        .bias = call.has(1) ? call.in(1) : nullptr,
                        .indices = call.out<std::int32_t>(0),
                        .weights = call.out(1),
                        .scores = call.out(2),
                        .tokens = tokens,
                        .num_experts = static_cast<int>(num_experts),
                        .top_k = static_cast<int>(a.top_k),
                        .num_groups = static_cast<int>(a.num_groups),
                        .top_groups = static_cast<int>(a.top_groups),
                        .use_sigmoid = a.score == ops::ScoreFunction::sigmoid,
                        .top2_sum = a.group_score == ops::GroupScore::top2_sum,
                        .normalize = a.normalize,
                        .by_logits = a.by_logits,
                        .scaling = static_cast<float>(a.scaling)});
}

struct RouteGradArguments {
  const float *d_weights, *d_scores, *scores;
  const std::int32_t* indices;
  float* d_logits;  // may be d_scores
  std::int64_t tokens;
  int num_experts, top_k;
  bool use_sigmoid, normalize;
  float scaling;
};

__global__ void route_grad_kernel(RouteGradArguments a) {
  extern __shared__ float shared[];
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t token = static_cast<std::int64_t>(blockIdx.x) * (blockDim.x / 32) + warp;
  if (token >= a.tokens) return;
  float* const d = shared + warp * a.num_experts;
  const std::int64_t row = token * a.num_experts;
  const float* scores = a.scores + row;
  for (int e = lane; e < a.num_experts; e += 32) d[e] = a.d_scores != nullptr ? a.d_scores[row + e] : 0.0F;
  __syncwarp();
  if (a.d_weights != nullptr) {
    const float* d_weights = a.d_weights + token * a.top_k;
    const std::int32_t* indices = a.indices + token * a.top_k;
    float sum = 0.0F, dot = 0.0F;
    for (int k = 0; k < a.top_k; ++k) {
      const float score = scores[indices[k]];
      sum += score;
      dot += d_weights[k] * score;
    }
    // w_k = scaling s_k / n with n = Σ s + tiny: dw_k/ds_j = scaling / n (δ_kj - s_k / n).
    const float norm = sum + kTinyScoreSum;
    for (int k = lane; k < a.top_k; k += 32)  // the experts of a token differ
      d[indices[k]] +=
          a.normalize ? a.scaling / norm * (d_weights[k] - dot / norm) : a.scaling * d_weights[k];
    __syncwarp();
  }
  if (a.use_sigmoid) {
    for (int e = lane; e < a.num_experts; e += 32)
      a.d_logits[row + e] = d[e] * (scores[e] * (1.0F - scores[e]));
    return;
  }
  float dot = 0.0F;
  for (int e = lane; e < a.num_experts; e += 32) dot += d[e] * scores[e];
  dot = warp_sum(dot);
  for (int e = lane; e < a.num_experts; e += 32) a.d_logits[row + e] = scores[e] * (d[e] - dot);
}

// [d_weights[T, K]], [d_scores[T, E]], scores[T, E], indices[T, K] → dlogits[T, E]
void run_route_grad(const KernelCall& call) {
  const auto& a = call.get<ops::Route>();
  const std::int64_t tokens = call.in_shape(2)[0], num_experts = call.in_shape(2)[1];
  const RouteLaunch shape(tokens, num_experts);
  launch(call, route_grad_kernel, shape.blocks, shape.threads, shape.shared_bytes,
         RouteGradArguments{.d_weights = call.has(0) ? call.in(0) : nullptr,
                            .d_scores = call.has(1) ? call.in(1) : nullptr,
                            .scores = call.in(2),
                            .indices = call.in<std::int32_t>(3),
                            .d_logits = call.out(0),
                            .tokens = tokens,
                            .num_experts = static_cast<int>(num_experts),
                            .top_k = static_cast<int>(a.top_k),
                            .use_sigmoid = a.score == ops::ScoreFunction::sigmoid,
                            .normalize = a.normalize,
                            .scaling = static_cast<float>(a.scaling)});
}

}  // namespace
}  // namespace cuda

void register_cuda_router(KernelTable& table);
void register_cuda_router(KernelTable& table) {
  table.add("route", DType::f32, DeviceKind::cuda, {.run = cuda::run_route});
  table.add("route_grad", DType::f32, DeviceKind::cuda, {.run = cuda::run_route_grad});
}

}  // namespace farskip
