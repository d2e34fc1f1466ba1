// SPDX-License-Identifier: Apache-2.0
// ops "linear_cross_entropy" and its gradient: the logits of one block of tokens at a time.
//
// The gradient keeps bf16 logits where the products are bf16: one kernel turns them into their gradient in
// place, as bf16, which is what the two products after it read anyway. Logits in f32 would cost twice the
// bytes of the one step here that is bound by bytes. The forward alone, which evaluation runs, has f32 logits
// in both cases.
#include <algorithm>
#include <cmath>

#include "backend/cuda/product.h"
#include "backend/cuda/tiled_product.cuh"
#include "farskip/ops/ops.h"

namespace farskip {
namespace cuda {
namespace {

// Every block reads and writes the whole of dw, so few large ones; from 4096 tokens of a vocabulary of
// 102,400 on, more gain nothing.
constexpr std::int64_t kMaxLogitBytes = 1 << 30;
constexpr int kMaxThreads = 1024, kUnroll = 4;
constexpr std::size_t kMaxCache = 216 << 10;  // of the 227 KiB a block of sm_90 may have
constexpr float kLowest = -INFINITY;

std::int64_t round_up(std::int64_t n, std::int64_t unit) {
  return (n + unit - 1) / unit * unit;
}

// ---- one row of logits per block -----------------------------------------------------------------

/// 16 bytes of logits.
template <class Logit>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / int(sizeof(Logit));
  Logit x[kSize];
};

__device__ inline float exponential(float x, float) {
  return expf(x);
}
__device__ inline float exponential(float x, bf16) {
  return __expf(x);
}

/// Softmax statistics of some logits: Σ exp(logit) = sum * exp(max).
struct Partial {
  float max = kLowest, sum = 0.0F;
};

template <class Logit>
__device__ void add_vector(const Vector<Logit>& v, std::int64_t first, std::int64_t vocabulary,
                           Partial& partial) {
  float x[Vector<Logit>::kSize], largest = kLowest;
#pragma unroll
  for (int i = 0; i < Vector<Logit>::kSize; ++i) {
    x[i] = first + i < vocabulary ? to_float(v.x[i]) : kLowest;
    largest = fmaxf(largest, x[i]);
  }
  if (largest > partial.max) {
    partial.sum = partial.max == kLowest ? 0.0F : partial.sum * exponential(partial.max - largest, Logit());
    partial.max = largest;
  }
#pragma unroll
  for (int i = 0; i < Vector<Logit>::kSize; ++i)
    if (first + i < vocabulary) partial.sum += exponential(x[i] - partial.max, Logit());
}

/// Of all threads of the block, in one order.
__device__ Partial combine(Partial mine) {
  __shared__ Partial warps[32];
  const auto join = [](Partial a, Partial b) {
    const float max = fmaxf(a.max, b.max);
    const float left = a.max == kLowest ? 0.0F : a.sum * expf(a.max - max);
    return Partial{max, left + (b.max == kLowest ? 0.0F : b.sum * expf(b.max - max))};
  };
  for (int step = 16; step > 0; step /= 2) {
    const Partial other{__shfl_down_sync(0xffffffff, mine.max, step),
                        __shfl_down_sync(0xffffffff, mine.sum, step)};
    mine = join(mine, other);
  }
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = mine;
  __syncthreads();
  Partial total;
  for (unsigned w = 0; w < blockDim.x / 32; ++w) total = join(total, warps[w]);
  return total;
}

/// What a token adds to the results.
struct TokenResults {
  double* loss;
  std::int32_t* correct;
};

struct RowProblem {
  std::int64_t vocabulary, leading;  // leading: a multiple of the vector
  const std::int32_t* targets;
  const float* dloss;  // gradient only
  bool cached;         // the row fits into shared memory
};

/// Loss of one token, and (kGradient) its row of logits becomes dloss * (softmax - one-hot of the target),
/// zeros where the token is not counted. A target outside the vocabulary, which no data has, makes the loss
/// NaN.
template <class Logit, bool kGradient>
__global__ void __launch_bounds__(kMaxThreads)
    finish_tokens(Logit* logits, RowProblem p, TokenResults results) {
  extern __shared__ uint4 cache_memory[];
  using V = Vector<Logit>;
  const std::int64_t token = blockIdx.x, vectors = p.leading / V::kSize;
  V* row = reinterpret_cast<V*>(logits + token * p.leading);
  V* cache = reinterpret_cast<V*>(cache_memory);
  const std::int64_t target = p.targets[token];
  if (target < 0 || target >= p.vocabulary) {
    if (kGradient)
      for (std::int64_t i = threadIdx.x; i < vectors; i += blockDim.x) row[i] = V{};
    if (threadIdx.x == 0) {
      results.loss[token] = target < 0 ? 0.0 : double(NAN);
      results.correct[token] = 0;
    }
    return;
  }
  const float target_logit = to_float(logits[token * p.leading + target]);  // read before it is overwritten
  Partial mine;
  for (std::int64_t i0 = threadIdx.x; i0 < vectors; i0 += kUnroll * std::int64_t(blockDim.x)) {
    V loaded[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
      if (const std::int64_t i = i0 + u * std::int64_t(blockDim.x); i < vectors) loaded[u] = row[i];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const std::int64_t i = i0 + u * std::int64_t(blockDim.x);
      if (i >= vectors) continue;
      if (kGradient && p.cached) cache[i] = loaded[u];
      add_vector(loaded[u], i * V::kSize, p.vocabulary, mine);
    }
  }
  const Partial total = combine(mine);
  if (threadIdx.x == 0) {
    results.loss[token] = double(total.max) + log(double(total.sum)) - double(target_logit);
    results.correct[token] = target_logit >= total.max ? 1 : 0;
  }
  if (!kGradient) return;
  const float dloss = *p.dloss, factor = dloss / total.sum;
  for (std::int64_t i = threadIdx.x; i < vectors; i += blockDim.x) {
    V v = p.cached ? cache[i] : row[i];  // each thread reads what it wrote
#pragma unroll
    for (int j = 0; j < V::kSize; ++j) {
      const std::int64_t at = i * V::kSize + j;
      float gradient = exponential(to_float(v.x[j]) - total.max, Logit()) * factor;
      if (at == target) gradient -= dloss;
      v.x[j] = from_float<Logit>(at < p.vocabulary ? gradient : 0.0F);
    }
    row[i] = v;
  }
}

/// Sums over tokens in one order, whatever the block of tokens was.
__global__ void __launch_bounds__(kMaxThreads)
    sum_tokens(TokenResults results, std::int64_t tokens, float* loss_sum, std::int32_t* num_correct) {
  __shared__ double losses[kMaxThreads];
  __shared__ std::int32_t counts[kMaxThreads];
  double loss = 0.0;
  std::int32_t correct = 0;
  for (std::int64_t t = threadIdx.x; t < tokens; t += kMaxThreads) {
    loss += results.loss[t];
    correct += results.correct[t];
  }
  losses[threadIdx.x] = loss;
  counts[threadIdx.x] = correct;
  for (int step = kMaxThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (int(threadIdx.x) >= step) continue;
    losses[threadIdx.x] += losses[threadIdx.x + step];
    counts[threadIdx.x] += counts[threadIdx.x + step];
  }
  if (threadIdx.x == 0) {
    *loss_sum = float(losses[0]);
    *num_correct = counts[0];
  }
}

__global__ void store_losses(const double* losses, std::int64_t tokens, float* to) {
  const std::int64_t t = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (t < tokens) to[t] = float(losses[t]);
}

// ---- blocks of tokens ----------------------------------------------------------------------------

/// How the workspace of one call is laid out.
struct Blocks {
  std::int64_t tokens, vocabulary, leading, block;
  std::size_t element;

  Blocks(std::int64_t num_tokens, std::int64_t vocabulary_size, DType logits)
      : tokens(num_tokens),
        vocabulary(vocabulary_size),
        leading(round_up(std::max<std::int64_t>(vocabulary_size, 1), 16)),
        element(dtype_size(logits)) {
    // Blocks of 2048 fill the card's multiprocessors: 2048 tokens by 2048 hidden are 128 tiles of 128 x 256.
    const std::int64_t fit = kMaxLogitBytes / (leading * static_cast<std::int64_t>(element));
    const std::int64_t most = fit >= 2048 ? fit / 2048 * 2048 : std::max<std::int64_t>(fit / 128 * 128, 128);
    block = std::min(most, round_up(std::max<std::int64_t>(tokens, 1), 128));
  }
  std::int64_t rows() const { return std::min(block, std::max<std::int64_t>(tokens, 1)); }
  std::size_t logit_bytes() const {
    return static_cast<std::size_t>(round_up(rows() * leading * static_cast<std::int64_t>(element), 256));
  }
  std::size_t loss_bytes() const { return static_cast<std::size_t>(round_up(tokens * 8, 256)); }
  std::size_t correct_bytes() const { return static_cast<std::size_t>(round_up(tokens * 4, 256)); }
  std::size_t bytes() const { return logit_bytes() + loss_bytes() + correct_bytes() + kProductWorkspace; }
};

struct Buffers {
  std::byte* logits;
  TokenResults results;
  std::span<std::byte> products;

  Buffers(std::span<std::byte> workspace, const Blocks& blocks) {
    FARSKIP_CHECK(workspace.size() >= blocks.bytes(), "workspace of {} bytes", workspace.size());
    logits = workspace.data();
    std::byte* rest = logits + blocks.logit_bytes();
    results.loss = reinterpret_cast<double*>(rest);
    rest += blocks.loss_bytes();
    results.correct = reinterpret_cast<std::int32_t*>(rest);
    rest += blocks.correct_bytes();
    products = {rest, kProductWorkspace};
  }
};

template <class Logit, bool kGradient>
void launch_finish(const LaunchContext& gpu, const Blocks& blocks, const Buffers& buffers, std::int64_t first,
                   std::int64_t rows, const std::int32_t* targets, const float* dloss) {
  const std::size_t row_bytes = static_cast<std::size_t>(blocks.leading) * sizeof(Logit);
  const bool cached = kGradient && row_bytes <= kMaxCache;
  const auto kernel = finish_tokens<Logit, kGradient>;
  if (cached)
    FARSKIP_CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kMaxCache)));
  const std::int64_t vectors = blocks.leading / Vector<Logit>::kSize;
  const auto threads = static_cast<unsigned>(std::min<std::int64_t>(round_up(vectors, 32), kMaxThreads));
  kernel<<<unsigned(rows), threads, cached ? row_bytes : 0, gpu.stream>>>(
      reinterpret_cast<Logit*>(buffers.logits),
      RowProblem{blocks.vocabulary, blocks.leading, targets + first, dloss, cached},
      TokenResults{buffers.results.loss + first, buffers.results.correct + first});
  FARSKIP_CUDA_CHECK_LAUNCH();
}

void launch_sum(const LaunchContext& gpu, const Buffers& buffers, std::int64_t tokens, float* loss_sum,
                std::int32_t* num_correct) {
  sum_tokens<<<1, kMaxThreads, 0, gpu.stream>>>(buffers.results, tokens, loss_sum, num_correct);
  FARSKIP_CUDA_CHECK_LAUNCH();
}

/// Rows [first, …) of a matrix.
const std::byte* row_of(const TensorView& matrix, std::int64_t first) {
  return static_cast<const std::byte*>(matrix.data) + first * matrix.shape.back() * dtype_size(matrix.dtype);
}

/// logits of `rows` tokens from `first`.
void compute_logits(const LaunchContext& gpu, const Blocks& blocks, const Buffers& buffers,
                    const TensorView& h, const TensorView& w, DType logits, std::int64_t first,
                    std::int64_t rows) {
  const std::int64_t hidden = h.shape.back();
  multiply(gpu,
           {.transpose_b = true,
            .m = rows,
            .n = blocks.vocabulary,
            .k = hidden,
            .in = h.dtype,
            .out = logits,
            .a = row_of(h, first),
            .lda = hidden,
            .b = w.data,
            .ldb = hidden,
            .c = buffers.logits,
            .ldc = blocks.leading},
           buffers.products);
}

// ---- ops -----------------------------------------------------------------------------------------

/// The results of each token, in the workspace.
Buffers compute_losses(const KernelCall& call) {
  const TensorView &h = call.inputs[0], &w = call.inputs[1];
  const Blocks blocks(h.shape[0], w.shape[0], DType::f32);
  const Buffers buffers(call.workspace, blocks);
  for (std::int64_t t = 0; t < blocks.tokens; t += blocks.block) {
    const std::int64_t rows = std::min(blocks.block, blocks.tokens - t);
    compute_logits(*call.gpu, blocks, buffers, h, w, DType::f32, t, rows);
    launch_finish<float, false>(*call.gpu, blocks, buffers, t, rows, call.in<std::int32_t>(2), nullptr);
  }
  return buffers;
}

void run_linear_cross_entropy(const KernelCall& call) {
  const Buffers buffers = compute_losses(call);
  launch_sum(*call.gpu, buffers, call.in_shape(0)[0], call.out(0), call.out<std::int32_t>(1));
}

void run_token_losses(const KernelCall& call) {
  const Buffers buffers = compute_losses(call);
  const std::int64_t tokens = call.in_shape(0)[0];
  launch(call, store_losses, dim3(grid_size(ceil_div(tokens, kMaxThreads))), dim3(kMaxThreads), 0,
         buffers.results.loss, tokens, call.out(0));
}

void run_linear_cross_entropy_grad(const KernelCall& call) {
  const TensorView &h = call.inputs[1], &w = call.inputs[2], &dh = call.outputs[2];
  const DType low = h.dtype;
  FARSKIP_CHECK(w.dtype == low && dh.dtype == low && call.outputs[3].dtype == DType::f32, "mixed types");
  const std::int64_t hidden = h.shape.back();
  const Blocks blocks(h.shape[0], w.shape[0], low);
  const Buffers buffers(call.workspace, blocks);
  const void* sum_so_far = call.has(4) ? call.inputs[4].data : nullptr;
  const auto finish = low == DType::bf16 ? launch_finish<bf16, true> : launch_finish<float, true>;
  for (std::int64_t t = 0; t < std::max<std::int64_t>(blocks.tokens, 1); t += blocks.block) {
    const std::int64_t rows =
        std::min(blocks.block, blocks.tokens - t);  // 0 without tokens: dw is still written
    if (rows > 0) {
      compute_logits(*call.gpu, blocks, buffers, h, w, low, t, rows);
      finish(*call.gpu, blocks, buffers, t, rows, call.in<std::int32_t>(3), call.in(0));
      multiply(*call.gpu,
               {.m = rows,
                .n = hidden,
                .k = blocks.vocabulary,
                .in = low,
                .out = low,
                .a = buffers.logits,
                .lda = blocks.leading,
                .b = w.data,
                .ldb = hidden,
                .c = const_cast<std::byte*>(row_of(dh, t)),
                .ldc = hidden},
               buffers.products);
    }
    multiply(*call.gpu,
             {.transpose_a = true,
              .m = blocks.vocabulary,
              .n = hidden,
              .k = rows,
              .in = low,
              .out = DType::f32,
              .a = buffers.logits,
              .lda = blocks.leading,
              .b = row_of(h, t),
              .ldb = hidden,
              .c = call.outputs[3].data,
              .ldc = hidden,
              .accumulate = sum_so_far},
             buffers.products);
    sum_so_far = call.outputs[3].data;
  }
  launch_sum(*call.gpu, buffers, blocks.tokens, call.out(0), call.out<std::int32_t>(1));
}

}  // namespace
}  // namespace cuda

void register_cuda_loss(KernelTable& table);

void register_cuda_loss(KernelTable& table) {
  const auto forward_workspace = [](const OpTypes& types) {
    return cuda::Blocks(types.shape(0)[0], types.shape(1)[0], DType::f32).bytes();
  };
  for (const DType dtype : {DType::f32, DType::bf16}) {
    table.add("linear_cross_entropy", dtype, DeviceKind::cuda,
              {.run = cuda::run_linear_cross_entropy, .workspace = forward_workspace});
    table.add("token_losses", dtype, DeviceKind::cuda,
              {.run = cuda::run_token_losses, .workspace = forward_workspace});
  }
  // Its first floating-point input is dloss, f32 whatever h is.
  table.add("linear_cross_entropy_grad", DType::f32, DeviceKind::cuda,
            {.run = cuda::run_linear_cross_entropy_grad, .workspace = [](const OpTypes& types) {
               return cuda::Blocks(types.shape(1)[0], types.shape(2)[0], types.in(1).dtype).bytes();
             }});
}

}  // namespace farskip
