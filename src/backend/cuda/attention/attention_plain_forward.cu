// SPDX-License-Identifier: Apache-2.0
// Forward of attention_plain.cuh.
#include "backend/cuda/attention/attention_plain.cuh"

namespace farskip::cuda {
namespace plain {
namespace {

/// Scores of one key block become weights relative to the running maximum of each query, whose sum and the
/// factor for what it has summed up so far are updated. kThreads / kBlock threads share a row.
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
  const std::int64_t sequence = blockIdx.x / p.heads, head = blockIdx.x % p.heads,
                     kv_head = head / (p.heads / p.kv_heads);
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
      const bool seen = i < p.length && j <= i && j >= p.first_key(sequence, i);
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
    if (i0 + r < p.length)
      out[(row0 + i0 + r) * p.heads * dv + head * dv + c] = from_float<T>(acc[r * ldv + c] / sum[r]);
  }
  if (threadIdx.x < kBlock && i0 + threadIdx.x < p.length)
    lse[(row0 + i0 + threadIdx.x) * p.heads + head] = max[threadIdx.x] + logf(sum[threadIdx.x]);
}

template <int kBlock, class T>
bool try_forward(const LaunchContext& gpu, const AttentionProblem& p, const AttentionForward& x) {
  const std::size_t bytes = forward_floats<kBlock>(p.d, p.dv) * sizeof(float);
  if (bytes > kMaxSharedBytes) return false;
  allow_shared(attention_forward<kBlock, T>, bytes);
  attention_forward<kBlock, T><<<grid_of(p, kBlock, p.heads), kThreads, bytes, gpu.stream>>>(
      p, static_cast<const T*>(x.q), static_cast<const T*>(x.k), static_cast<const T*>(x.v),
      static_cast<T*>(x.out), x.lse);
  FARSKIP_CUDA_CHECK_LAUNCH();
  return true;
}

template <class T>
void run_forward(const LaunchContext& gpu, const AttentionProblem& p, const AttentionForward& x) {
  const bool done =
      try_forward<64, T>(gpu, p, x) || try_forward<32, T>(gpu, p, x) || try_forward<16, T>(gpu, p, x);
  FARSKIP_CHECK(done, "attention with head sizes {} and {}", p.d, p.dv);
}

}  // namespace
}  // namespace plain

void run_plain_attention(const LaunchContext& gpu, const AttentionProblem& p, const AttentionForward& x) {
  p.dtype == DType::bf16 ? plain::run_forward<bf16>(gpu, p, x) : plain::run_forward<float>(gpu, p, x);
}

}  // namespace farskip::cuda
