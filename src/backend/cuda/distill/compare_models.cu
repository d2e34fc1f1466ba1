// SPDX-License-Identifier: Apache-2.0
// Differences between a student and its teacher inside the layers: hidden states, routers.
#include "backend/cuda/launch.cuh"
#include "backend/divergence.h"
#include "ops/distill_ops.h"

namespace farskip {
namespace cuda {
namespace {

constexpr int kSumThreads = 1024;

__device__ __forceinline__ double weight_of(const float* token_weights, std::int64_t token) {
  return token_weights == nullptr ? 1.0 : static_cast<double>(token_weights[token]);
}

// One warp a token, in all of these. values[token] is then summed in one order.

template <class T>
__global__ void __launch_bounds__(kThreads)
    squared_difference_kernel(const T* x, const T* y, const std::int32_t* targets, const float* token_weights,
                              double* values, std::int64_t tokens, std::int64_t width) {
  const std::int64_t token = warp_row();
  if (token >= tokens) return;
  double sum = 0.0;
  if (targets[token] >= 0)
    for (std::int64_t i = threadIdx.x % 32; i < width; i += 32) {
      const float difference = to_float(x[token * width + i]) - to_float(y[token * width + i]);
      sum += static_cast<double>(difference * difference);
    }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) values[token] = weight_of(token_weights, token) * sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    squared_difference_grad_kernel(const float* dloss, const T* x, const T* y, const std::int32_t* targets,
                                   const float* token_weights, T* dx, std::int64_t tokens, std::int64_t width,
                                   double weight) {
  const std::int64_t token = warp_row();
  if (token >= tokens) return;
  const float scale = targets[token] < 0
                          ? 0.0F
                          : static_cast<float>(2.0 * weight * weight_of(token_weights, token) *
                                               static_cast<double>(*dloss) / static_cast<double>(width));
  for (std::int64_t i = threadIdx.x % 32; i < width; i += 32) {
    const std::int64_t at = token * width + i;
    store_one(dx + at, scale * (to_float(x[at]) - to_float(y[at])));
  }
}

/// squares[token] = mean of y².
template <class T>
__global__ void __launch_bounds__(kThreads)
    mean_square_kernel(const T* y, double* squares, std::int64_t tokens, std::int64_t width) {
  const std::int64_t token = warp_row();
  if (token >= tokens) return;
  double sum = 0.0;
  for (std::int64_t i = threadIdx.x % 32; i < width; i += 32) {
    const double value = static_cast<double>(to_float(y[token * width + i]));
    sum += value * value;
  }
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) squares[token] = sum / static_cast<double>(width);
}

/// One block a sequence, of `length` tokens.
__global__ void __launch_bounds__(kThreads)
    relative_weights_kernel(const double* squares, const float* factors, float* weights,
                            std::int64_t length) {
  __shared__ double shared[kWarpsPerBlock];
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * length;
  double sum = 0.0;
  for (std::int64_t i = 1 + threadIdx.x; i < length; i += kThreads) sum += squares[first + i];
  sum = block_sum<kThreads>(sum, shared);
  const double mean = length == 1 ? squares[first] : sum / static_cast<double>(length - 1);
  for (std::int64_t t = first + threadIdx.x; t < first + length; t += kThreads)
    weights[t] = static_cast<float>(weight_of(factors, t) * 2.0 / fmax(squares[t] + mean, ops::kTinySquare));
}

/// probability_i = exp(x_i - max) / sum.
struct WarpSoftmax {
  float max, inverse_sum;
  double log_sum;
  __device__ __forceinline__ float at(float x) const { return expf(x - max) * inverse_sum; }
};

/// In every lane. Not inlined: student and teacher must get the same bits of the same logits.
__device__ __noinline__ WarpSoftmax softmax_of(const float* x, std::int64_t n) {
  float max = -INFINITY;
  double sum = 0.0;
  for (std::int64_t i = threadIdx.x % 32; i < n; i += 32) max = fmaxf(max, x[i]);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) max = fmaxf(max, __shfl_xor_sync(0xffffffffU, max, step));
  for (std::int64_t i = threadIdx.x % 32; i < n; i += 32) sum += static_cast<double>(expf(x[i] - max));
  sum = warp_sum(sum);
  return {max, static_cast<float>(1.0 / sum), static_cast<double>(max) + log(sum)};
}

/// A token's routers. The two sums are rounded, which is too much where their difference is small: one step
/// of Newton's method towards Σ q = Σ p.
struct Routers {
  const float *student, *teacher;
  std::int64_t experts;
  WarpSoftmax q, p;
  LogRatio log_ratio;

  __device__ Routers(const float* s, const float* t, std::int64_t n)
      : student(s),
        teacher(t),
        experts(n),
        q(softmax_of(s, n)),
        p(softmax_of(t, n)),
        log_ratio(1.0F, q.log_sum - p.log_sum) {
    const double gain = sum([](float pe, float qe, float x) { return probability_gain(pe, qe, x); });
    log_ratio = LogRatio(1.0F, q.log_sum - p.log_sum + log1p(gain));
  }
  /// Of term(p, q, log(q/p)) for one expert.
  template <class F>
  __device__ float at(std::int64_t e, const F& term) const {
    return term(p.at(teacher[e]), q.at(student[e]), log_ratio.at(student[e], teacher[e]));
  }
  template <class F>
  __device__ double sum(const F& term) const {
    double mine = 0.0;
    for (std::int64_t e = threadIdx.x % 32; e < experts; e += 32) mine += static_cast<double>(at(e, term));
    return warp_sum(mine);
  }
};

__global__ void __launch_bounds__(kThreads)
    router_divergence_kernel(const float* student, const float* teacher, const std::int32_t* targets,
                             double* values, std::int64_t tokens, std::int64_t experts) {
  const std::int64_t token = warp_row();
  if (token >= tokens) return;
  double sum = 0.0;
  if (targets[token] >= 0)
    sum = Routers(student + token * experts, teacher + token * experts, experts)
              .sum([](float p, float q, float x) { return kl_term(p, q, x); });
  if (threadIdx.x % 32 == 0) values[token] = sum;
}

__global__ void __launch_bounds__(kThreads)
    router_divergence_grad_kernel(const float* dloss, const float* student, const float* teacher,
                                  const std::int32_t* targets, float* dstudent, std::int64_t tokens,
                                  std::int64_t experts, float weight) {
  const std::int64_t token = warp_row();
  if (token >= tokens) return;
  const Routers routers(student + token * experts, teacher + token * experts, experts);
  const float scale = targets[token] < 0 ? 0.0F : weight * *dloss;
  for (std::int64_t e = threadIdx.x % 32; e < experts; e += 32)
    dstudent[token * experts + e] =
        scale * routers.at(e, [](float p, float q, float x) { return probability_gain(p, q, x); });
}

/// out = factor · Σ values.
__global__ void __launch_bounds__(kSumThreads)
    sum_tokens_kernel(const double* values, std::int64_t tokens, double factor, float* out) {
  __shared__ double shared[kSumThreads / 32];
  double sum = 0.0;
  for (std::int64_t t = threadIdx.x; t < tokens; t += kSumThreads) sum += values[t];
  sum = block_sum<kSumThreads>(sum, shared);
  if (threadIdx.x == 0) *out = static_cast<float>(factor * sum);
}

/// *flips += choices of the student that the teacher did not make. Integers: their order does not matter.
__global__ void __launch_bounds__(kThreads)
    count_flips_kernel(const std::int32_t* student, const std::int32_t* teacher, const std::int32_t* targets,
                       std::int64_t tokens, std::int64_t top_k, std::int32_t* flips) {
  __shared__ std::int32_t shared[kWarpsPerBlock];
  const std::int64_t slot = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  std::int32_t flipped = 0;
  if (slot < tokens * top_k && targets[slot / top_k] >= 0) {
    const std::int32_t* chosen = teacher + slot / top_k * top_k;
    flipped = 1;
    for (std::int64_t k = 0; k < top_k; ++k)
      if (chosen[k] == student[slot]) flipped = 0;
  }
  flipped = block_sum<kThreads>(flipped, shared);
  if (threadIdx.x == 0 && flipped > 0) atomicAdd(flips, flipped);
}

// ---- ops ---------------------------------------------------------------------------------------------

double* token_values(const KernelCall& call) {
  return reinterpret_cast<double*>(call.workspace.data());
}
std::size_t double_per_token(const OpTypes& types) {
  return static_cast<std::size_t>(types.shape(0)[0]) * sizeof(double);
}

void sum_tokens(const KernelCall& call, double factor) {
  launch(call, sum_tokens_kernel, 1, kSumThreads, 0, token_values(call), call.in_shape(0)[0], factor,
         call.out(0));
}

void run_squared_difference(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(0)[0], width = call.in_shape(0)[1];
  with_element_type(call.inputs[0].dtype, [&]<class T>(T) {
    launch(call, squared_difference_kernel<T>, warp_row_grid(tokens), kThreads, 0, call.in<T>(0),
           call.in<T>(1), call.in<std::int32_t>(2), call.has(3) ? call.in(3) : nullptr, token_values(call),
           tokens, width);
  });
  sum_tokens(call, call.get<ops::Weight>().weight / static_cast<double>(width));
}

void run_squared_difference_grad(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(1)[0], width = call.in_shape(1)[1];
  with_element_type(call.inputs[1].dtype, [&]<class T>(T) {
    launch(call, squared_difference_grad_kernel<T>, warp_row_grid(tokens), kThreads, 0, call.in(0),
           call.in<T>(1), call.in<T>(2), call.in<std::int32_t>(3), call.has(4) ? call.in(4) : nullptr,
           call.out<T>(0), tokens, width, call.get<ops::Weight>().weight);
  });
}

void run_relative_weights(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(0)[0], width = call.in_shape(0)[1];
  const std::int64_t length = call.get<ops::Sequences>().sequence_length;
  with_element_type(call.inputs[0].dtype, [&]<class T>(T) {
    launch(call, mean_square_kernel<T>, warp_row_grid(tokens), kThreads, 0, call.in<T>(0), token_values(call),
           tokens, width);
  });
  launch(call, relative_weights_kernel, grid_size(tokens / length), kThreads, 0, token_values(call),
         call.has(1) ? call.in(1) : nullptr, call.out(0), length);
}

void run_router_divergence(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(0)[0], experts = call.in_shape(0)[1];
  launch(call, router_divergence_kernel, warp_row_grid(tokens), kThreads, 0, call.in(0), call.in(1),
         call.in<std::int32_t>(2), token_values(call), tokens, experts);
  sum_tokens(call, call.get<ops::Weight>().weight);
}

void run_router_divergence_grad(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(1)[0], experts = call.in_shape(1)[1];
  launch(call, router_divergence_grad_kernel, warp_row_grid(tokens), kThreads, 0, call.in(0), call.in(1),
         call.in(2), call.in<std::int32_t>(3), call.out(0), tokens, experts, call.get<ops::Weight>().weight);
}

void run_count_routing_flips(const KernelCall& call) {
  const std::int64_t tokens = call.in_shape(0)[0], top_k = call.in_shape(0)[1];
  FARSKIP_CUDA_CHECK(cudaMemsetAsync(call.out<std::int32_t>(0), 0, sizeof(std::int32_t), call.gpu->stream));
  launch(call, count_flips_kernel, grid_size(ceil_div(tokens * top_k, kThreads)), kThreads, 0,
         call.in<std::int32_t>(0), call.in<std::int32_t>(1), call.in<std::int32_t>(2), tokens, top_k,
         call.out<std::int32_t>(0));
}

}  // namespace
}  // namespace cuda

void register_cuda_compare_models(KernelTable& table);

void register_cuda_compare_models(KernelTable& table) {
  const auto add = [&](std::string_view op, DType dtype, Kernel kernel) {
    table.add(op, dtype, DeviceKind::cuda, kernel);
  };
  for (const DType dtype : {DType::f32, DType::bf16}) {
    add("squared_difference", dtype,
        {.run = cuda::run_squared_difference, .workspace = cuda::double_per_token});
    add("relative_weights", dtype, {.run = cuda::run_relative_weights, .workspace = cuda::double_per_token});
  }
  // Of the gradients the first floating-point input is dloss; router logits are always f32.
  add("squared_difference_grad", DType::f32, {.run = cuda::run_squared_difference_grad});
  add("router_divergence", DType::f32,
      {.run = cuda::run_router_divergence, .workspace = cuda::double_per_token});
  add("router_divergence_grad", DType::f32, {.run = cuda::run_router_divergence_grad});
  add("count_routing_flips", DType::i32, {.run = cuda::run_count_routing_flips});
}

}  // namespace farskip
