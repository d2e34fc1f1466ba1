// SPDX-License-Identifier: Apache-2.0
// Causal attention by blocks with an online softmax (Dao et al. 2022, arXiv 2205.14135). Heads are read and
// written where they lie in the [T, heads * size] rows.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/attention_sizes.h"
#include "backend/cpu/micro_kernel.h"
#include "backend/cpu/parallel.h"
#include "backend/cpu/vector_math.h"
#include "farskip/backend/kernel.h"
#include "farskip/ops/ops.h"

namespace farskip {
namespace {

constexpr std::int64_t kQueries = 252, kKeys = 128;  // block sizes; 252 is a multiple of 6 and of 14
constexpr float kLowest = -std::numeric_limits<float>::infinity();

std::int64_t first_key_of_block(const AttentionSizes& p, std::int64_t sequence, std::int64_t begin,
                                std::int64_t end) {
  std::int64_t first = begin;
  for (std::int64_t i = begin; i < end; ++i) first = std::min(first, p.first_key(sequence, i));
  return first;
}

/// c (+)= op(a) op(b) for blocks whose n may be any head size.
void multiply_block(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
                    const float* a, std::int64_t lda, const float* b, std::int64_t ldb, bool accumulate,
                    float* c, std::int64_t ldc) {
  for (std::int64_t j = 0; j < n; j += cpu::kMaxTileColumns)
    cpu::multiply_tile(transpose_a, transpose_b, m, std::min(cpu::kMaxTileColumns, n - j), k, a, lda,
                       transpose_b ? b + j * ldb : b + j, ldb, accumulate, c + j, ldc);
}

float dot(const float* x, const float* y, std::int64_t n) {
  float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += x[i] * y[i];
  return sum;
}

void scale_row(float* x, std::int64_t n, float factor) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) x[i] *= factor;
}

void clear_rows(float* x, std::int64_t rows, std::int64_t columns, std::int64_t stride) {
  for (std::int64_t i = 0; i < rows; ++i) std::fill_n(x + i * stride, columns, 0.0F);
}

// ---- forward -------------------------------------------------------------------------------------

/// Running softmax of a query: largest scaled score and Σ exp(score - max).
struct Running {
  float max = kLowest;
  float sum = 0.0F;
};

/// Scores of one key block become weights relative to the running maximum; keys a query does not see get
/// weight 0, and what the query has summed up in `out` so far is rescaled.
void update_softmax(const AttentionSizes& p, std::int64_t sequence, std::int64_t i0, std::int64_t m,
                    std::int64_t j0, std::int64_t n, float* scores, Running* running, float* out) {
  const std::int64_t out_stride = p.heads * p.dv;
  for (std::int64_t r = 0; r < m; ++r) {
    float* row = scores + r * kKeys;
    const std::int64_t begin = std::clamp<std::int64_t>(p.first_key(sequence, i0 + r) - j0, 0, n);
    const std::int64_t end = std::clamp<std::int64_t>(i0 + r + 1 - j0, begin, n);
    std::fill(row, row + begin, 0.0F);
    std::fill(row + end, row + n, 0.0F);
    if (begin == end) continue;
    Running& state = running[r];
    float max = state.max;
#pragma omp simd reduction(max : max)
    for (std::int64_t j = begin; j < end; ++j) {
      row[j] *= p.scale;
      max = row[j] > max ? row[j] : max;
    }
    float sum = 0.0F;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t j = begin; j < end; ++j) {
      row[j] = cpu::fast_exp(row[j] - max);
      sum += row[j];
    }
    if (state.max != kLowest) {
      const float factor = cpu::fast_exp(state.max - max);
      sum += state.sum * factor;
      if (factor != 1.0F) scale_row(out + r * out_stride, p.dv, factor);
    }
    state = {max, sum};
  }
}

struct ForwardTensors {
  const float *q, *k, *v;
  float *out, *lse;
};

/// Queries [i0, i0 + m) of one head of one sequence.
void forward_block(const AttentionSizes& p, const ForwardTensors& x, std::int64_t sequence, std::int64_t head,
                   std::int64_t i0, std::int64_t m) {
  alignas(64) float scores[kQueries * kKeys];
  const std::int64_t q_stride = p.heads * p.d, k_stride = p.kv_heads * p.d, v_stride = p.kv_heads * p.dv;
  const std::int64_t out_stride = p.heads * p.dv, kv_head = head / p.heads_per_kv();
  const std::int64_t row = sequence * p.length, query = row + i0;
  const float* q = x.q + query * q_stride + head * p.d;
  float* out = x.out + query * out_stride + head * p.dv;
  Running running[kQueries];
  const std::int64_t first = first_key_of_block(p, sequence, i0, i0 + m) / kKeys * kKeys;
  for (std::int64_t j0 = first; j0 < i0 + m; j0 += kKeys) {
    const std::int64_t n = std::min(kKeys, i0 + m - j0);
    const float* k = x.k + (row + j0) * k_stride + kv_head * p.d;
    const float* v = x.v + (row + j0) * v_stride + kv_head * p.dv;
    // Queries before the first key of the block see none of it.
    const std::int64_t skip = std::max<std::int64_t>(j0 - i0, 0), rows = m - skip;
    multiply_block(false, true, rows, n, p.d, q + skip * q_stride, q_stride, k, k_stride, false, scores,
                   kKeys);
    update_softmax(p, sequence, i0 + skip, rows, j0, n, scores, running + skip, out + skip * out_stride);
    multiply_block(false, false, rows, p.dv, n, scores, kKeys, v, v_stride, j0 > first,
                   out + skip * out_stride, out_stride);
  }
  for (std::int64_t r = 0; r < m; ++r) {
    scale_row(out + r * out_stride, p.dv, 1.0F / running[r].sum);
    x.lse[(query + r) * p.heads + head] = running[r].max + std::log(running[r].sum);
  }
}

void run_attention(const KernelCall& call) {
  const AttentionSizes p = attention_sizes(call.get<ops::Attention>(), call.in_shape(0), call.in_shape(2),
                                           call.has(3) ? call.in<std::int32_t>(3) : nullptr);
  const ForwardTensors x{call.in(0), call.in(1), call.in(2), call.out(0), call.out(1)};
  const std::int64_t blocks = cpu::ceil_div(p.length, kQueries), lanes = p.sequences * p.heads;
  cpu::parallel_for(blocks * lanes, [&](std::int64_t i) {
    const std::int64_t i0 = (blocks - 1 - i / lanes) * kQueries;  // the last queries see most keys: first
    const std::int64_t lane = i % lanes;
    forward_block(p, x, lane / p.heads, lane % p.heads, i0, std::min(kQueries, p.length - i0));
  });
}

// ---- backward ------------------------------------------------------------------------------------

struct BackwardTensors {
  const float *dout, *q, *k, *v, *out, *lse;
  float *dq, *dk, *dv;  // dk, dv: rows of one share of the heads
  float* delta;         // [T, A]: dout · out
};

/// The heads that read one key-value head are cut into shares that run side by side; each sums dk and dv
/// of its heads in order. Few key-value heads need shares to keep 32 threads busy; shares cost memory.
std::int64_t num_shares(const AttentionSizes& p) {
  std::int64_t shares = 1;
  while (shares < p.heads_per_kv() && p.sequences * p.kv_heads * shares < 32) ++shares;
  while (p.heads_per_kv() % shares != 0) ++shares;
  return shares;
}

struct BackwardBuffers {
  std::int64_t rows, dk_size, dv_size;
  std::int64_t shares;
  static BackwardBuffers of(const AttentionSizes& p) {
    const std::int64_t rows = p.sequences * p.length;
    return {rows, rows * p.kv_heads * p.d, rows * p.kv_heads * p.dv, num_shares(p)};
  }
  /// delta, then dk and dv of every share but the first, which writes the outputs.
  std::size_t bytes(const AttentionSizes& p) const {
    return static_cast<std::size_t>(rows * p.heads + (shares - 1) * (dk_size + dv_size)) * sizeof(float);
  }
};

/// Weights and score gradients of queries [i0, i0 + m) and keys [j0, j0 + n): scores → P, dp → dS.
void differentiate_softmax(const AttentionSizes& p, const BackwardTensors& x, std::int64_t sequence,
                           std::int64_t head, std::int64_t i0, std::int64_t m, std::int64_t j0,
                           std::int64_t n, float* scores, float* dp) {
  for (std::int64_t r = 0; r < m; ++r) {
    float *weights = scores + r * kKeys, *gradient = dp + r * kKeys;
    const std::int64_t begin = std::clamp<std::int64_t>(p.first_key(sequence, i0 + r) - j0, 0, n);
    const std::int64_t end = std::clamp<std::int64_t>(i0 + r + 1 - j0, begin, n);
    const std::int64_t at = (sequence * p.length + i0 + r) * p.heads + head;
    const float lse = x.lse[at], delta = x.delta[at], scale = p.scale;
    for (const auto& [from, to] : {std::pair(std::int64_t{0}, begin), std::pair(end, n)}) {
      std::fill(weights + from, weights + to, 0.0F);
      std::fill(gradient + from, gradient + to, 0.0F);
    }
#pragma omp simd
    for (std::int64_t j = begin; j < end; ++j) {
      weights[j] = cpu::fast_exp(weights[j] * scale - lse);
      gradient[j] = weights[j] * (gradient[j] - delta) * scale;
    }
  }
}

/// All of one head of one sequence: adds to dk and dv of its key-value head, writes dq.
void backward_head(const AttentionSizes& p, const BackwardTensors& x, std::int64_t sequence,
                   std::int64_t head) {
  alignas(64) float scores[kQueries * kKeys];
  alignas(64) float dp[kQueries * kKeys];
  const std::int64_t q_stride = p.heads * p.d, out_stride = p.heads * p.dv, k_stride = p.kv_heads * p.d;
  const std::int64_t v_stride = p.kv_heads * p.dv, kv_head = head / p.heads_per_kv();
  const std::int64_t row = sequence * p.length;
  const float* q = x.q + row * q_stride + head * p.d;
  const float* dout = x.dout + row * out_stride + head * p.dv;
  const float* out = x.out + row * out_stride + head * p.dv;
  float* dq = x.dq + row * q_stride + head * p.d;
  clear_rows(dq, p.length, p.d, q_stride);
  for (std::int64_t i = 0; i < p.length; ++i)
    x.delta[(row + i) * p.heads + head] = dot(dout + i * out_stride, out + i * out_stride, p.dv);
  for (std::int64_t j0 = 0; j0 < p.length; j0 += kKeys) {
    const std::int64_t n = std::min(kKeys, p.length - j0);
    const std::int64_t k_at = (row + j0) * k_stride + kv_head * p.d;
    const std::int64_t v_at = (row + j0) * v_stride + kv_head * p.dv;
    for (std::int64_t i0 = j0; i0 < p.length; i0 += kQueries) {
      const std::int64_t m = std::min(kQueries, p.length - i0);
      if (first_key_of_block(p, sequence, i0, i0 + m) >= j0 + n) continue;
      const float* q_block = q + i0 * q_stride;
      const float* dout_block = dout + i0 * out_stride;
      multiply_block(false, true, m, n, p.d, q_block, q_stride, x.k + k_at, k_stride, false, scores, kKeys);
      multiply_block(false, true, m, n, p.dv, dout_block, out_stride, x.v + v_at, v_stride, false, dp, kKeys);
      differentiate_softmax(p, x, sequence, head, i0, m, j0, n, scores, dp);
      multiply_block(true, false, n, p.dv, m, scores, kKeys, dout_block, out_stride, true, x.dv + v_at,
                     v_stride);
      multiply_block(false, false, m, p.d, n, dp, kKeys, x.k + k_at, k_stride, true, dq + i0 * q_stride,
                     q_stride);
      multiply_block(true, false, n, p.d, m, dp, kKeys, q_block, q_stride, true, x.dk + k_at, k_stride);
    }
  }
}

/// to += from, both of n elements.
void add_share(float* to, const float* from, std::int64_t n) {
  cpu::parallel_ranges(n, 1 << 16, [&](std::int64_t begin, std::int64_t end) {
#pragma omp simd
    for (std::int64_t i = begin; i < end; ++i) to[i] += from[i];
  });
}

void run_attention_grad(const KernelCall& call) {
  const AttentionSizes p = attention_sizes(call.get<ops::Attention>(), call.in_shape(1), call.in_shape(3),
                                           call.has(6) ? call.in<std::int32_t>(6) : nullptr);
  const BackwardBuffers buffers = BackwardBuffers::of(p);
  FARSKIP_CHECK(call.workspace.size() >= buffers.bytes(p), "workspace of {} bytes", call.workspace.size());
  auto* delta = reinterpret_cast<float*>(call.workspace.data());
  float* shares = delta + buffers.rows * p.heads;
  const auto share_of = [&](std::int64_t s) {
    BackwardTensors x{call.in(0), call.in(1),  call.in(2),  call.in(3),  call.in(4),
                      call.in(5), call.out(0), call.out(1), call.out(2), delta};
    if (s > 0) {
      x.dk = shares + (s - 1) * (buffers.dk_size + buffers.dv_size);
      x.dv = x.dk + buffers.dk_size;
    }
    return x;
  };
  const std::int64_t heads_per_share = p.heads_per_kv() / buffers.shares;
  cpu::parallel_for(p.sequences * p.kv_heads * buffers.shares, [&](std::int64_t i) {
    const std::int64_t share = i % buffers.shares, kv_head = i / buffers.shares % p.kv_heads;
    const std::int64_t sequence = i / buffers.shares / p.kv_heads, row = sequence * p.length;
    const BackwardTensors x = share_of(share);
    clear_rows(x.dk + (row * p.kv_heads + kv_head) * p.d, p.length, p.d, p.kv_heads * p.d);
    clear_rows(x.dv + (row * p.kv_heads + kv_head) * p.dv, p.length, p.dv, p.kv_heads * p.dv);
    for (std::int64_t h = 0; h < heads_per_share; ++h)
      backward_head(p, x, sequence, kv_head * p.heads_per_kv() + share * heads_per_share + h);
  });
  for (std::int64_t s = 1; s < buffers.shares; ++s) {
    add_share(call.out(1), share_of(s).dk, buffers.dk_size);
    add_share(call.out(2), share_of(s).dv, buffers.dv_size);
  }
}

}  // namespace

void register_attention(KernelTable& table);

void register_attention(KernelTable& table) {
  table.add("attention", DType::f32, DeviceKind::cpu, {.run = run_attention, .workspace = nullptr});
  table.add("attention_grad", DType::f32, DeviceKind::cpu,
            {.run = run_attention_grad, .workspace = [](const OpTypes& types) {
               const AttentionSizes p =
                   attention_sizes(types.get<ops::Attention>(), types.shape(1), types.shape(3), nullptr);
               return BackwardBuffers::of(p).bytes(p);
             }});
}

}  // namespace farskip
