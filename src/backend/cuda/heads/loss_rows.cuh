// SPDX-License-Identifier: Apache-2.0
#pragma once
// What cross-entropy over a whole vocabulary (loss.cu) and over a part of one (head_stats.cu) have in common:
// a block of threads a row of logits, and the logits of one block of tokens at a time.
#include <algorithm>
#include <cmath>

#include "backend/cuda/product.h"
#include "backend/cuda/tiled_product.cuh"
#include "farskip/ops/ops.h"

namespace farskip::cuda {
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

/// Joins what all threads of the block have, in one order.
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
  bool cached;                     // the row of a gradient fits into shared memory
  std::int64_t first = 0, of = 0;  // of a part: its first id, ids of all parts
};

/// Statistics of a row. Where `cache` is not nullptr, what each thread read is left there.
template <class Logit>
__device__ Partial read_row(const Vector<Logit>* row, Vector<Logit>* cache, const RowProblem& p) {
  using V = Vector<Logit>;
  const std::int64_t vectors = p.leading / V::kSize;
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
      if (cache != nullptr) cache[i] = loaded[u];
      add_vector(loaded[u], i * V::kSize, p.vocabulary, mine);
    }
  }
  return combine(mine);
}

/// The row becomes `scale` times its softmax, plus `at_target` where the target is, and zeros past the
/// vocabulary.
template <class Logit>
__device__ void scale_softmax(Vector<Logit>* row, const Vector<Logit>* cache, const RowProblem& p,
                              Partial total, float scale, std::int64_t target, float at_target) {
  using V = Vector<Logit>;
  const float factor = scale / total.sum;
  for (std::int64_t i = threadIdx.x; i < p.leading / V::kSize; i += blockDim.x) {
    V v = cache != nullptr ? cache[i] : row[i];  // each thread reads what it wrote
#pragma unroll
    for (int j = 0; j < V::kSize; ++j) {
      const std::int64_t at = i * V::kSize + j;
      float gradient = exponential(to_float(v.x[j]) - total.max, Logit()) * factor;
      if (at == target) gradient += at_target;
      v.x[j] = from_float<Logit>(at < p.vocabulary ? gradient : 0.0F);
    }
    row[i] = v;
  }
}

template <class Logit>
__device__ void clear_row(Vector<Logit>* row, const RowProblem& p) {
  for (std::int64_t i = threadIdx.x; i < p.leading / Vector<Logit>::kSize; i += blockDim.x) row[i] = {};
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

/// The workspace of one call is laid out like this.
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

/// A kernel over rows, one block a row, with as much shared memory as the row of a gradient takes if it fits.
template <class Logit, class Kernel, class... Arguments>
void launch_rows(const LaunchContext& gpu, Kernel kernel, const Blocks& blocks, std::int64_t rows,
                 bool gradient, const std::byte* logits, RowProblem problem, const Arguments&... arguments) {
  const std::size_t row_bytes = static_cast<std::size_t>(blocks.leading) * sizeof(Logit);
  problem.cached = gradient && row_bytes <= kMaxCache;
  if (problem.cached)
    FARSKIP_CUDA_CHECK(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kMaxCache)));
  const std::int64_t vectors = blocks.leading / Vector<Logit>::kSize;
  const auto threads = static_cast<unsigned>(std::min<std::int64_t>(round_up(vectors, 32), kMaxThreads));
  kernel<<<unsigned(rows), threads, problem.cached ? row_bytes : 0, gpu.stream>>>(
      reinterpret_cast<Logit*>(const_cast<std::byte*>(logits)), problem, arguments...);
  FARSKIP_CUDA_CHECK_LAUNCH();
}

void launch_sum(const LaunchContext& gpu, const TokenResults& results, std::int64_t tokens, float* loss_sum,
                std::int32_t* num_correct) {
  sum_tokens<<<1, kMaxThreads, 0, gpu.stream>>>(results, tokens, loss_sum, num_correct);
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

/// The logits of h[T, H] and w[V, H] in f32, block by block: finish(blocks, buffers, t, rows) reads those of
/// tokens [t, t + rows) from the buffers.
template <class Finish>
Buffers run_forward(const KernelCall& call, const Finish& finish) {
  const TensorView &h = call.inputs[0], &w = call.inputs[1];
  const Blocks blocks(h.shape[0], w.shape[0], DType::f32);
  const Buffers buffers(call.workspace, blocks);
  for (std::int64_t t = 0; t < blocks.tokens; t += blocks.block) {
    const std::int64_t rows = std::min(blocks.block, blocks.tokens - t);
    compute_logits(*call.gpu, blocks, buffers, h, w, DType::f32, t, rows);
    finish(blocks, buffers, t, rows);
  }
  return buffers;
}

/// The products of a gradient, block by block: finish(t, rows) turns the logits of tokens [t, t + rows) into
/// their gradient.
template <class Finish>
void run_gradient(const LaunchContext& gpu, const Blocks& blocks, const Buffers& buffers, const TensorView& h,
                  const TensorView& w, const void* sum_so_far, const TensorView& dh, const TensorView& dw,
                  const Finish& finish) {
  const DType low = h.dtype;
  FARSKIP_CHECK(w.dtype == low && dh.dtype == low && dw.dtype == DType::f32, "mixed types");
  const std::int64_t hidden = h.shape.back();
  for (std::int64_t t = 0; t < std::max<std::int64_t>(blocks.tokens, 1); t += blocks.block) {
    const std::int64_t rows =
        std::min(blocks.block, blocks.tokens - t);  // 0 without tokens: dw is still written
    if (rows > 0) {
      compute_logits(gpu, blocks, buffers, h, w, low, t, rows);
      finish(t, rows);
      multiply(gpu,
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
    multiply(gpu,
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
              .c = dw.data,
              .ldc = hidden,
              .accumulate = sum_so_far},
             buffers.products);
    sum_so_far = dw.data;
  }
}

}  // namespace
}  // namespace farskip::cuda
