// Causal attention by blocks with an online softmax (Dao et al. 2022, arXiv 2205.14135), in f32 on the ordinary
// cores: for f32, and for masks and head sizes that cuDNN lacks. Every sum has one order.
#include <cmath>

#include "backend/cuda/attention.h"
#include "backend/cuda/check.h"
#include "backend/cuda/tiled_product.cuh"

namespace farskip::cuda {
namespace {

constexpr int kThreads = 256;
constexpr float kLowest = -INFINITY;

/// Length of a row in shared memory: an odd number of words, so that the elements of a column lie in different banks.
__host__ __device__ constexpr int odd(std::int64_t n) {
  return int(n) | 1;
}

/// First key that query i sees; the last one is i.
__device__ std::int64_t first_key(const AttentionProblem& p, std::int64_t sequence, std::int64_t i) {
  const std::int64_t chunk_start = p.chunk > 0 ? i - i % p.chunk : 0;
  if (p.document_start == nullptr) return chunk_start;
  const std::int64_t document = p.document_start[sequence * p.length + i];
  return document > chunk_start ? document : chunk_start;
}

/// rows x size elements to shared memory; rows past `available` become 0.
template <int kBlock, class T>
__device__ void load_rows(const T* from, std::int64_t stride, std::int64_t available, int size, float* to, int ld) {
  for (int i = int(threadIdx.x); i < kBlock * size; i += kThreads) {
    const int row = i / size, column = i % size;
    to[row * ld + column] = row < available ? to_float(from[row * stride + column]) : 0.0F;
  }
}

__device__ inline void clear(float* x, int n) {
  for (int i = int(threadIdx.x); i < n; i += kThreads) x[i] = 0.0F;
}

/// store(r, c, Σ_k x[r][k] y[c][k]) for all r, c of a block.
template <int kBlock, class Store>
__device__ void multiply_rows(const float* x, const float* y, int ld, int depth, const Store& store) {
  constexpr int kEach = kBlock / 16;
  const int tx = int(threadIdx.x) % 16, ty = int(threadIdx.x) / 16;
  float sum[kEach][kEach] = {};
  for (int k = 0; k < depth; ++k) {
    float a[kEach], b[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      a[i] = x[(ty + 16 * i) * ld + k];
      b[i] = y[(tx + 16 * i) * ld + k];
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) sum[i][j] += a[i] * b[j];
    }
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) store(ty + 16 * i, tx + 16 * j, sum[i][j]);
  }
}

/// acc[r][c] = acc[r][c] * factor[r] + Σ_j w[r][j] y[j][c] for c < size (kTranspose: w[j][r]); factor may be nullptr.
template <int kBlock, bool kTranspose>
__device__ void add_product(const float* w, int ldw, const float* y, int ld, int size, const float* factor,
                            float* acc) {
  constexpr int kEach = kBlock / 16;
  const int tx = int(threadIdx.x) % 16, ty = int(threadIdx.x) / 16;
  for (int c0 = 0; c0 < size; c0 += 64) {
    float sum[kEach][4] = {};
    for (int j = 0; j < kBlock; ++j) {
      float a[kEach], b[4];
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
        const int r = ty + 16 * i;
        a[i] = kTranspose ? w[j * ldw + r] : w[r * ldw + j];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int c = c0 + tx + 16 * i;
        b[i] = c < size ? y[j * ld + c] : 0.0F;
      }
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int jj = 0; jj < 4; ++jj) sum[i][jj] += a[i] * b[jj];
      }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int r = ty + 16 * i;
      const float scale = factor != nullptr ? factor[r] : 1.0F;
#pragma unroll
      for (int jj = 0; jj < 4; ++jj) {
        const int c = c0 + tx + 16 * jj;
        if (c < size) acc[r * ld + c] = acc[r * ld + c] * scale + sum[i][jj];
      }
    }
  }
}

/// Smallest first key of queries [i0, end), by all threads of the block.
template <int kBlock>
__device__ std::int64_t first_key_of_block(const AttentionProblem& p, std::int64_t sequence, std::int64_t i0) {
  __shared__ int first;
  if (threadIdx.x == 0) first = int(i0);
  __syncthreads();
  if (threadIdx.x < kBlock && i0 + threadIdx.x < p.length)
    atomicMin(&first, int(first_key(p, sequence, i0 + threadIdx.x)));
  __syncthreads();
  const int result = first;
  __syncthreads();  // before the next call sets it again
  return result;
}

// ---- forward -------------------------------------------------------------------------------------

/// Scores of one key block become weights relative to the running maximum of each query, whose sum and the factor
/// for what it has summed up so far are updated. kThreads / kBlock threads share a row.
template <int kBlock>
__device__ void update_softmax(float* scores, int ld, float* max, float* sum, float* factor) {
  constexpr int kLanes = kThreads / kBlock;
  const int row = int(threadIdx.x) / kLanes, lane = int(threadIdx.x) % kLanes;
  float* x = scores + row * ld;
  float largest = kLowest;
  for (int j = lane; j < kBlock; j += kLanes) largest = fmaxf(largest, x[j]);
  for (int step = kLanes / 2; step > 0; step /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffff, largest, step));
  const float before = max[row], now = fmaxf(before, largest);
  float total = 0.0F;
  for (int j = lane; j < kBlock; j += kLanes) {
    const float weight = x[j] == kLowest ? 0.0F : expf(x[j] - now);
    x[j] = weight;
    total += weight;
  }
  for (int step = kLanes / 2; step > 0; step /= 2) total += __shfl_xor_sync(0xffffffff, total, step);
  __syncwarp();  // all lanes have read max[row]
  if (lane == 0) {
    const float scale = before == kLowest ? (now == kLowest ? 1.0F : 0.0F) : expf(before - now);
    factor[row] = scale;
    sum[row] = sum[row] * scale + total;
    max[row] = now;
  }
}

template <int kBlock>
constexpr std::size_t forward_floats(std::int64_t d, std::int64_t dv) {
  const int wide = odd(d > dv ? d : dv);
  return std::size_t(kBlock) * (odd(d) + wide + odd(dv) + odd(kBlock) + 3);
}

/// A block computes kBlock queries of one head. Later queries see more keys: their blocks come first.
template <int kBlock, class T>
__global__ void __launch_bounds__(kThreads)
    attention_forward(AttentionProblem p, const T* q, const T* k, const T* v, T* out, float* lse) {
  extern __shared__ float memory[];
  const int d = int(p.d), dv = int(p.dv), ldd = odd(d), ldv = odd(dv), lds = odd(kBlock);
  float* queries = memory;
  float* keys = queries + kBlock * ldd;  // or values
  float* acc = keys + kBlock * (ldd > ldv ? ldd : ldv);
  float* scores = acc + kBlock * ldv;
  float *max = scores + kBlock * lds, *sum = max + kBlock, *factor = sum + kBlock;
  const std::int64_t sequence = blockIdx.x / p.heads, head = blockIdx.x % p.heads, kv_head = head / (p.heads / p.kv_heads);
  const std::int64_t i0 = std::int64_t(gridDim.y - 1 - blockIdx.y) * kBlock, row0 = sequence * p.length;
  const std::int64_t stride_q = p.heads * d, stride_k = p.kv_heads * d, stride_v = p.kv_heads * dv;
  load_rows<kBlock>(q + (row0 + i0) * stride_q + head * d, stride_q, p.length - i0, d, queries, ldd);
  clear(acc, kBlock * ldv);
  if (threadIdx.x < kBlock) {
    max[threadIdx.x] = kLowest;
    sum[threadIdx.x] = 0.0F;
  }
  const std::int64_t first = first_key_of_block<kBlock>(p, sequence, i0) / kBlock * kBlock;
  for (std::int64_t j0 = first; j0 <= i0; j0 += kBlock) {
    load_rows<kBlock>(k + (row0 + j0) * stride_k + kv_head * d, stride_k, p.length - j0, d, keys, ldd);
    __syncthreads();
    multiply_rows<kBlock>(queries, keys, ldd, d, [&](int r, int c, float score) {
      const std::int64_t i = i0 + r, j = j0 + c;
      const bool seen = i < p.length && j <= i && j >= first_key(p, sequence, i);
      scores[r * lds + c] = seen ? score * p.scale : kLowest;
    });
    __syncthreads();
    update_softmax<kBlock>(scores, lds, max, sum, factor);
    load_rows<kBlock>(v + (row0 + j0) * stride_v + kv_head * dv, stride_v, p.length - j0, dv, keys, ldv);
    __syncthreads();
    add_product<kBlock, false>(scores, lds, keys, ldv, dv, factor, acc);
    __syncthreads();
  }
  for (int i = int(threadIdx.x); i < kBlock * dv; i += kThreads) {
    const int r = i / dv, c = i % dv;
    if (i0 + r < p.length) out[(row0 + i0 + r) * p.heads * dv + head * dv + c] = from_float<T>(acc[r * ldv + c] / sum[r]);
  }
  if (threadIdx.x < kBlock && i0 + threadIdx.x < p.length)
    lse[(row0 + i0 + threadIdx.x) * p.heads + head] = max[threadIdx.x] + logf(sum[threadIdx.x]);
}

// ---- backward ------------------------------------------------------------------------------------

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
      const bool seen = i < p.length && j <= i && j >= first_key(p, sequence, i);
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

template <int kBlock, class T>
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
  return {p, lse, delta, sequence, head, queries, dout, keys, values, weights, weights + kBlock * lds, ldd, ldv, lds};
}

/// A block computes dk and dv of kBlock keys of one key-value head: over its query heads, then over queries.
template <int kBlock, class T>
__global__ void __launch_bounds__(kThreads)
    attention_backward_keys(AttentionProblem p, BackwardPointers<kBlock, T> x) {
  extern __shared__ float memory[];
  const int d = int(p.d), dv = int(p.dv);
  const std::int64_t sequence = blockIdx.x / p.kv_heads, kv_head = blockIdx.x % p.kv_heads, group = p.heads / p.kv_heads;
  const std::int64_t j0 = std::int64_t(blockIdx.y) * kBlock, row0 = sequence * p.length;
  Gradients<kBlock> g = place_gradients<kBlock>(p, memory, x.lse, x.delta, sequence, kv_head * group);
  float* dkeys = g.dscores + kBlock * g.lds;
  float* dvalues = dkeys + kBlock * g.ldd;
  const std::int64_t stride_q = p.heads * d, stride_out = p.heads * dv, stride_k = p.kv_heads * d, stride_v = p.kv_heads * dv;
  load_rows<kBlock>(x.k + (row0 + j0) * stride_k + kv_head * d, stride_k, p.length - j0, d, g.keys, g.ldd);
  load_rows<kBlock>(x.v + (row0 + j0) * stride_v + kv_head * dv, stride_v, p.length - j0, dv, g.values, g.ldv);
  clear(dkeys, kBlock * g.ldd);
  clear(dvalues, kBlock * g.ldv);
  for (std::int64_t h = 0; h < group; ++h) {
    g.head = kv_head * group + h;
    for (std::int64_t i0 = j0; i0 < p.length; i0 += kBlock) {
      if (first_key_of_block<kBlock>(p, sequence, i0) >= j0 + kBlock) continue;
      load_rows<kBlock>(x.q + (row0 + i0) * stride_q + g.head * d, stride_q, p.length - i0, d, g.queries, g.ldd);
      load_rows<kBlock>(x.dout + (row0 + i0) * stride_out + g.head * dv, stride_out, p.length - i0, dv, g.dout, g.ldv);
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
      x.dk[(row0 + j0 + i / d) * stride_k + kv_head * d + i % d] = from_float<T>(dkeys[i / d * g.ldd + i % d]);
  for (int i = int(threadIdx.x); i < kBlock * dv; i += kThreads)
    if (j0 + i / dv < p.length)
      x.dv[(row0 + j0 + i / dv) * stride_v + kv_head * dv + i % dv] = from_float<T>(dvalues[i / dv * g.ldv + i % dv]);
}

/// A block computes dq of kBlock queries of one head, over keys.
template <int kBlock, class T>
__global__ void __launch_bounds__(kThreads)
    attention_backward_queries(AttentionProblem p, BackwardPointers<kBlock, T> x) {
  extern __shared__ float memory[];
  const int d = int(p.d), dv = int(p.dv);
  const std::int64_t sequence = blockIdx.x / p.heads, head = blockIdx.x % p.heads, kv_head = head / (p.heads / p.kv_heads);
  const std::int64_t i0 = std::int64_t(gridDim.y - 1 - blockIdx.y) * kBlock, row0 = sequence * p.length;
  const Gradients<kBlock> g = place_gradients<kBlock>(p, memory, x.lse, x.delta, sequence, head);
  float* dqueries = g.dscores + kBlock * g.lds;
  const std::int64_t stride_q = p.heads * d, stride_out = p.heads * dv, stride_k = p.kv_heads * d, stride_v = p.kv_heads * dv;
  load_rows<kBlock>(x.q + (row0 + i0) * stride_q + head * d, stride_q, p.length - i0, d, g.queries, g.ldd);
  load_rows<kBlock>(x.dout + (row0 + i0) * stride_out + head * dv, stride_out, p.length - i0, dv, g.dout, g.ldv);
  clear(dqueries, kBlock * g.ldd);
  const std::int64_t first = first_key_of_block<kBlock>(p, sequence, i0) / kBlock * kBlock;
  for (std::int64_t j0 = first; j0 <= i0; j0 += kBlock) {
    load_rows<kBlock>(x.k + (row0 + j0) * stride_k + kv_head * d, stride_k, p.length - j0, d, g.keys, g.ldd);
    load_rows<kBlock>(x.v + (row0 + j0) * stride_v + kv_head * dv, stride_v, p.length - j0, dv, g.values, g.ldv);
    __syncthreads();
    g.compute(i0, j0);
    __syncthreads();
    add_product<kBlock, false>(g.dscores, g.lds, g.keys, g.ldd, d, nullptr, dqueries);
    __syncthreads();
  }
  for (int i = int(threadIdx.x); i < kBlock * d; i += kThreads)
    if (i0 + i / d < p.length)
      x.dq[(row0 + i0 + i / d) * stride_q + head * d + i % d] = from_float<T>(dqueries[i / d * g.ldd + i % d]);
}

// ---- launches ------------------------------------------------------------------------------------

constexpr std::size_t kMaxSharedBytes = (227 << 10) - 64;  // a block of sm_90 may have 227 KiB, some of it static

template <class Kernel>
void allow_shared(Kernel kernel, std::size_t bytes) {
  FARSKIP_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)));
}

dim3 grid_of(const AttentionProblem& p, int block, std::int64_t heads) {
  return dim3(unsigned(p.sequences * heads), unsigned((p.length + block - 1) / block));
}

template <int kBlock, class T>
bool try_forward(const LaunchContext& gpu, const AttentionProblem& p, const AttentionForward& x) {
  const std::size_t bytes = forward_floats<kBlock>(p.d, p.dv) * sizeof(float);
  if (bytes > kMaxSharedBytes) return false;
  allow_shared(attention_forward<kBlock, T>, bytes);
  attention_forward<kBlock, T><<<grid_of(p, kBlock, p.heads), kThreads, bytes, gpu.stream>>>(
      p, static_cast<const T*>(x.q), static_cast<const T*>(x.k), static_cast<const T*>(x.v), static_cast<T*>(x.out),
      x.lse);
  FARSKIP_CUDA_CHECK_LAUNCH();
  return true;
}

template <int kBlock, class T>
bool try_backward(const LaunchContext& gpu, const AttentionProblem& p, const AttentionBackward& x, float* delta) {
  const std::size_t bytes = backward_floats<kBlock>(p.d, p.dv) * sizeof(float);
  if (bytes > kMaxSharedBytes) return false;
  const BackwardPointers<kBlock, T> pointers{static_cast<const T*>(x.dout), static_cast<const T*>(x.q),
                                             static_cast<const T*>(x.k),    static_cast<const T*>(x.v),
                                             x.lse,                         delta,
                                             static_cast<T*>(x.dq),         static_cast<T*>(x.dk),
                                             static_cast<T*>(x.dv)};
  allow_shared(attention_backward_keys<kBlock, T>, bytes);
  attention_backward_keys<kBlock, T><<<grid_of(p, kBlock, p.kv_heads), kThreads, bytes, gpu.stream>>>(p, pointers);
  FARSKIP_CUDA_CHECK_LAUNCH();
  allow_shared(attention_backward_queries<kBlock, T>, bytes);
  attention_backward_queries<kBlock, T><<<grid_of(p, kBlock, p.heads), kThreads, bytes, gpu.stream>>>(p, pointers);
  FARSKIP_CUDA_CHECK_LAUNCH();
  return true;
}

template <class T>
void run_forward(const LaunchContext& gpu, const AttentionProblem& p, const AttentionForward& x) {
  const bool done = try_forward<64, T>(gpu, p, x) || try_forward<32, T>(gpu, p, x) || try_forward<16, T>(gpu, p, x);
  FARSKIP_CHECK(done, "attention with head sizes {} and {}", p.d, p.dv);
}

template <class T>
void run_backward(const LaunchContext& gpu, const AttentionProblem& p, const AttentionBackward& x, float* delta) {
  const std::int64_t rows = p.tokens() * p.heads;
  constexpr int kWarps = 8;
  row_products<T><<<unsigned((rows + kWarps - 1) / kWarps), kWarps * 32, 0, gpu.stream>>>(
      static_cast<const T*>(x.dout), static_cast<const T*>(x.out), rows, int(p.dv), delta);
  FARSKIP_CUDA_CHECK_LAUNCH();
  const bool done = try_backward<64, T>(gpu, p, x, delta) || try_backward<32, T>(gpu, p, x, delta) ||
                    try_backward<16, T>(gpu, p, x, delta);
  FARSKIP_CHECK(done, "attention with head sizes {} and {}", p.d, p.dv);
}

}  // namespace

std::size_t plain_attention_backward_workspace(const AttentionProblem& p) {
  return static_cast<std::size_t>(p.tokens() * p.heads) * sizeof(float);  // delta
}

void run_plain_attention(const LaunchContext& gpu, const AttentionProblem& p, const AttentionForward& x) {
  p.dtype == DType::bf16 ? run_forward<__nv_bfloat16>(gpu, p, x) : run_forward<float>(gpu, p, x);
}

void run_plain_attention_backward(const LaunchContext& gpu, const AttentionProblem& p, const AttentionBackward& x,
                                  std::span<std::byte> workspace) {
  FARSKIP_CHECK(workspace.size() >= plain_attention_backward_workspace(p), "workspace of {} bytes", workspace.size());
  auto* delta = reinterpret_cast<float*>(workspace.data());
  p.dtype == DType::bf16 ? run_backward<__nv_bfloat16>(gpu, p, x, delta) : run_backward<float>(gpu, p, x, delta);
}

}  // namespace farskip::cuda
