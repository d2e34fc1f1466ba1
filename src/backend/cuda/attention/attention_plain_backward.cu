// SPDX-License-Identifier: Apache-2.0
// Backward of attention_plain.cuh.
#include "backend/cuda/attention/attention_plain.cuh"

namespace farskip::cuda {
namespace plain {
namespace {

/// delta[t, a] = dout · out. A warp per row and head.
template <class T>
__global__ void row_products(const T* dout, const T* out, std::int64_t rows, int dv, float* delta) {
  const std::int64_t row = std::int64_t(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= rows) return;
  float sum = 0.0F;
  for (int i = int(threadIdx.x) % 32; i < dv; i += 32)
    sum += to_float(dout[row * dv + i]) * to_float(out[row * dv + i]);
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
  if (threadIdx.x % 32 == 0) delta[row] = sum;
}

/// Of one head: queries and dout of a block in shared memory, keys and values too → weights P and dS.
template <int kBlock>
struct Gradients {
  const AttentionProblem& p;
  const float *lse, *delta;
  std::int64_t sequence, head;
  float *queries, *dout, *keys, *values, *weights, *dscores;
  int ldd, ldv, lds;

  __device__ void compute(std::int64_t i0, std::int64_t j0) const {
    multiply_rows<kBlock>(queries, keys, ldd, int(p.d), [&](int r, int c, float score) {
      const std::int64_t i = i0 + r, j = j0 + c;
      const bool seen = i < p.length && j <= i && j >= p.first_key(sequence, i);
      const std::int64_t at = (sequence * p.length + i) * p.heads + head;
      weights[r * lds + c] = seen ? expf(score * p.scale - lse[at]) : 0.0F;
    });
    // The same thread computes the same (r, c) again.
    multiply_rows<kBlock>(dout, values, ldv, int(p.dv), [&](int r, int c, float product) {
      const float weight = weights[r * lds + c];
      const std::int64_t at = (sequence * p.length + i0 + r) * p.heads + head;
      dscores[r * lds + c] = weight == 0.0F ? 0.0F : weight * (product - delta[at]) * p.scale;
    });
  }
};

template <int kBlock>
constexpr std::size_t backward_floats(std::int64_t d, std::int64_t dv) {
  return std::size_t(kBlock) * (3 * (odd(d) + odd(dv)) + 2 * odd(kBlock));
}

template <class T>
struct BackwardPointers {
  const T *dout, *q, *k, *v;
  const float *lse, *delta;
  T *dq, *dk, *dv;
};

template <int kBlock>
__device__ Gradients<kBlock> place_gradients(const AttentionProblem& p, float* memory, const float* lse,
                                             const float* delta, std::int64_t sequence, std::int64_t head) {
  const int ldd = odd(p.d), ldv = odd(p.dv), lds = odd(kBlock);
  float* queries = memory;
  float* keys = queries + kBlock * ldd;
  float* dout = keys + kBlock * ldd;
  float* values = dout + kBlock * ldv;
  float* weights = values + kBlock * ldv;
  return {p,   lse, delta, sequence, head, queries, dout, keys, values, weights, weights + kBlock * lds,
          ldd, ldv, lds};
}

/// A block computes dk and dv of kBlock keys of one key-value head: over its query heads, then over queries.
template <int kBlock, class T>
__global__ void __launch_bounds__(kThreads)
    attention_backward_keys(AttentionProblem p, BackwardPointers<T> x) {
  extern __shared__ float memory[];
  const int d = int(p.d), dv = int(p.dv);
  const std::int64_t sequence = blockIdx.x / p.kv_heads, kv_head = blockIdx.x % p.kv_heads,
                     group = p.heads / p.kv_heads;
  const std::int64_t j0 = std::int64_t(blockIdx.y) * kBlock, row0 = sequence * p.length;
  Gradients<kBlock> g = place_gradients<kBlock>(p, memory, x.lse, x.delta, sequence, kv_head * group);
  float* dkeys = g.dscores + kBlock * g.lds;
  float* dvalues = dkeys + kBlock * g.ldd;
  const std::int64_t stride_q = p.heads * d, stride_out = p.heads * dv, stride_k = p.kv_heads * d,
                     stride_v = p.kv_heads * dv;
  load_rows<kBlock>(x.k + (row0 + j0) * stride_k + kv_head * d, stride_k, p.length - j0, d, g.keys, g.ldd);
  load_rows<kBlock>(x.v + (row0 + j0) * stride_v + kv_head * dv, stride_v, p.length - j0, dv, g.values,
                    g.ldv);
  clear(dkeys, kBlock * g.ldd);
  clear(dvalues, kBlock * g.ldv);
  for (std::int64_t h = 0; h < group; ++h) {
    g.head = kv_head * group + h;
    for (std::int64_t i0 = j0; i0 < p.length; i0 += kBlock) {
      if (first_key_of_block<kBlock>(p, sequence, i0) >= j0 + kBlock) continue;
      load_rows<kBlock>(x.q + (row0 + i0) * stride_q + g.head * d, stride_q, p.length - i0, d, g.queries,
                        g.ldd);
      load_rows<kBlock>(x.dout + (row0 + i0) * stride_out + g.head * dv, stride_out, p.length - i0, dv,
                        g.dout, g.ldv);
      __syncthreads();
      g.compute(i0, j0);
      __syncthreads();
      add_product<kBlock, true>(g.weights, g.lds, g.dout, g.ldv, dv, nullptr, dvalues);
      add_product<kBlock, true>(g.dscores, g.lds, g.queries, g.ldd, d, nullptr, dkeys);
      __syncthreads();
    }
  }
  __syncthreads();
  for (int i = int(threadIdx.x); i < kBlock * d; i += kThreads)
    if (j0 + i / d < p.length)
      x.dk[(row0 + j0 + i / d) * stride_k + kv_head * d + i % d] =
          from_float<T>(dkeys[i / d * g.ldd + i % d]);
  for (int i = int(threadIdx.x); i < kBlock * dv; i += kThreads)
    if (j0 + i / dv < p.length)
      x.dv[(row0 + j0 + i / dv) * stride_v + kv_head * dv + i % dv] =
          from_float<T>(dvalues[i / dv * g.ldv + i % dv]);
}

/// A block computes dq of kBlock queries of one head, over keys.
template <int kBlock, class T>
__global__ void __launch_bounds__(kThreads)
    attention_backward_queries(AttentionProblem p, BackwardPointers<T> x) {
  extern __shared__ float memory[];
  const int d = int(p.d), dv = int(p.dv);
  const std::int64_t sequence = blockIdx.x / p.heads, head = blockIdx.x % p.heads,
                     kv_head = head / (p.heads / p.kv_heads);
  const std::int64_t i0 = std::int64_t(gridDim.y - 1 - blockIdx.y) * kBlock, row0 = sequence * p.length;
  const Gradients<kBlock> g = place_gradients<kBlock>(p, memory, x.lse, x.delta, sequence, head);
  float* dqueries = g.dscores + kBlock * g.lds;
  const std::int64_t stride_q = p.heads * d, stride_out = p.heads * dv, stride_k = p.kv_heads * d,
                     stride_v = p.kv_heads * dv;
  load_rows<kBlock>(x.q + (row0 + i0) * stride_q + head * d, stride_q, p.length - i0, d, g.queries, g.ldd);
  load_rows<kBlock>(x.dout + (row0 + i0) * stride_out + head * dv, stride_out, p.length - i0, dv, g.dout,
                    g.ldv);
  clear(dqueries, kBlock * g.ldd);
  const std::int64_t first = first_key_of_block<kBlock>(p, sequence, i0) / kBlock * kBlock;
  for (std::int64_t j0 = first; j0 <= i0; j0 += kBlock) {
    load_rows<kBlock>(x.k + (row0 + j0) * stride_k + kv_head * d, stride_k, p.length - j0, d, g.keys, g.ldd);
    load_rows<kBlock>(x.v + (row0 + j0) * stride_v + kv_head * dv, stride_v, p.length - j0, dv, g.values,
                      g.ldv);
    __syncthreads();
    g.compute(i0, j0);
    __syncthreads();
    add_product<kBlock, false>(g.dscores, g.lds, g.keys, g.ldd, d, nullptr, dqueries);
    __syncthreads();
  }
  for (int i = int(threadIdx.x); i < kBlock * d; i += kThreads)
    if (i0 + i / d < p.length)
      x.dq[(row0 + i0 + i / d) * stride_q + head * d + i % d] =
          from_float<T>(dqueries[i / d * g.ldd + i % d]);
}

template <int kBlock, class T>
bool try_backward(const LaunchContext& gpu, const AttentionProblem& p, const AttentionBackward& x,
                  float* delta) {
  const std::size_t bytes = backward_floats<kBlock>(p.d, p.dv) * sizeof(float);
  if (bytes > kMaxSharedBytes) return false;
  const BackwardPointers<T> pointers{static_cast<const T*>(x.dout),
                                     static_cast<const T*>(x.q),
                                     static_cast<const T*>(x.k),
                                     static_cast<const T*>(x.v),
                                     x.lse,
                                     delta,
                                     static_cast<T*>(x.dq),
                                     static_cast<T*>(x.dk),
                                     static_cast<T*>(x.dv)};
  allow_shared(attention_backward_keys<kBlock, T>, bytes);
  attention_backward_keys<kBlock, T>
      <<<grid_of(p, kBlock, p.kv_heads), kThreads, bytes, gpu.stream>>>(p, pointers);
  FARSKIP_CUDA_CHECK_LAUNCH();
  allow_shared(attention_backward_queries<kBlock, T>, bytes);
  attention_backward_queries<kBlock, T>
      <<<grid_of(p, kBlock, p.heads), kThreads, bytes, gpu.stream>>>(p, pointers);
  FARSKIP_CUDA_CHECK_LAUNCH();
  return true;
}

template <class T>
void run_backward(const LaunchContext& gpu, const AttentionProblem& p, const AttentionBackward& x,
                  float* delta) {
  const std::int64_t rows = p.tokens() * p.heads;
  row_products<T><<<warp_row_grid(rows), kThreads, 0, gpu.stream>>>(
      static_cast<const T*>(x.dout), static_cast<const T*>(x.out), rows, int(p.dv), delta);
  FARSKIP_CUDA_CHECK_LAUNCH();
  const bool done = try_backward<64, T>(gpu, p, x, delta) || try_backward<32, T>(gpu, p, x, delta) ||
                    try_backward<16, T>(gpu, p, x, delta);
  FARSKIP_CHECK(done, "attention with head sizes {} and {}", p.d, p.dv);
}

}  // namespace
}  // namespace plain

std::size_t plain_attention_backward_workspace(const AttentionProblem& p) {
  return static_cast<std::size_t>(p.tokens() * p.heads) * sizeof(float);  // delta
}

void run_plain_attention_backward(const LaunchContext& gpu, const AttentionProblem& p,
                                  const AttentionBackward& x, std::span<std::byte> workspace) {
  FARSKIP_CHECK(workspace.size() >= plain_attention_backward_workspace(p), "workspace of {} bytes",
                workspace.size());
  auto* delta = reinterpret_cast<float*>(workspace.data());
  p.dtype == DType::bf16 ? plain::run_backward<bf16>(gpu, p, x, delta)
                         : plain::run_backward<float>(gpu, p, x, delta);
}

}  // namespace farskip::cuda
