// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a block of threads computes about one row of logits, for the losses of distillation.
//
// A student that has its teacher's logits must get exactly zero. So the sums of both come from the same
// functions, which are not inlined: the compiler must not fuse additions in only one of them.

#include <cmath>

#include "backend/cuda/launch.cuh"
#include "backend/divergence.h"
#include "ops/distill_ops.h"

namespace farskip::cuda {

constexpr int kRowThreads = 1024;

/// Shared memory of the reductions below. Each of them may be called again at once.
struct RowScratch {
  double sums[kRowThreads / 32];
  float values[kRowThreads / 32];
  std::int32_t indices[kRowThreads / 32];
};

/// The largest logit, and the first place that has it.
struct Largest {
  float value = -INFINITY;
  std::int32_t index = 0x7fffffff;

  __device__ __forceinline__ void add(float other, std::int32_t at) {
    if (other > value || (other == value && at < index)) {
      value = other;
      index = at;
    }
  }
};

__device__ inline double row_sum(double x, RowScratch& scratch) {
  return block_sum<kRowThreads>(x, scratch.sums);
}

__device__ inline Largest row_largest(Largest mine, RowScratch& scratch) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const float value = __shfl_xor_sync(0xffffffffU, mine.value, step);
    mine.add(value, __shfl_xor_sync(0xffffffffU, mine.index, step));
  }
  if (threadIdx.x % 32 == 0) {
    scratch.values[threadIdx.x / 32] = mine.value;
    scratch.indices[threadIdx.x / 32] = mine.index;
  }
  __syncthreads();
  Largest all;
  for (int w = 0; w < kRowThreads / 32; ++w) all.add(scratch.values[w], scratch.indices[w]);
  __syncthreads();
  return all;
}

/// Of x[n].
__device__ inline Largest find_largest(const float* x, std::int32_t n, RowScratch& scratch) {
  Largest mine;
  for (std::int32_t i = threadIdx.x; i < n; i += kRowThreads) mine.add(x[i], i);
  return row_largest(mine, scratch);
}

/// probability_i = exp((x_i - max) scale) / sum.
struct Softmax {
  float max, scale, inverse_sum;
  std::int32_t first;  // the lowest token with the largest logit
  double sum;
  double log_sum;  // log Σ exp(x_i scale)

  __device__ __forceinline__ float at(float x) const { return expf((x - max) * scale) * inverse_sum; }
  __device__ __forceinline__ double log_at(float x) const {
    return static_cast<double>((x - max) * scale) - log(sum);
  }
};

static __device__ __noinline__ Softmax softmax_of(const float* x, std::int32_t n, double temperature,
                                                  RowScratch& scratch) {
  const Largest largest = find_largest(x, n, scratch);
  Softmax s{largest.value, static_cast<float>(1.0 / temperature), 0.0F, largest.index, 0.0, 0.0};
  for (std::int32_t i = threadIdx.x; i < n; i += kRowThreads)
    s.sum += static_cast<double>(expf((x[i] - s.max) * s.scale));
  s.sum = row_sum(s.sum, scratch);
  s.log_sum = static_cast<double>(s.max) * static_cast<double>(s.scale) + log(s.sum);
  s.inverse_sum = static_cast<float>(1.0 / s.sum);
  return s;
}

/// log(Σ exp(s_i scale) / Σ exp(t_i scale)), exactly 0 for equal rows. -INFINITY in a row stands for no
/// logit. Each of the two sums is rounded, which is too much where their difference is small: one step of
/// Newton's method towards Σ q = Σ p.
__device__ inline double log_sum_ratio(const float* student, const Softmax& q, const float* teacher,
                                       const Softmax& p, std::int32_t n, RowScratch& scratch) {
  const double rounded = q.log_sum - p.log_sum;
  const LogRatio log_ratio(q.scale, rounded);
  double gain = 0.0;
  for (std::int32_t i = threadIdx.x; i < n; i += kRowThreads) {
    const float s = student[i], t = teacher[i];
    gain += static_cast<double>(probability_gain(p.at(t), q.at(s), log_ratio.at(s, t)));
  }
  return rounded + log1p(row_sum(gain, scratch));
}

/// Of the parts that each thread has summed.
__device__ inline Divergences sum_divergences(Divergences mine, const ops::DistillLoss& a,
                                              RowScratch& scratch) {
  mine.kl = row_sum(mine.kl, scratch);
  if (a.reverse_kl > 0) mine.reverse_kl = row_sum(mine.reverse_kl, scratch);
  if (a.jsd > 0) {
    mine.jsd_student = row_sum(mine.jsd_student, scratch);
    mine.jsd = row_sum(mine.jsd, scratch);
  }
  return mine;
}

// ---- events: the largest logits of the teacher, and the rest together ----------------------------------

/// One model's distribution over the k logits that were kept and, as event k, the rest.
struct Events {
  double scale, log_total;  // log Σ exp(logit scale) over all
  Softmax rest;             // over the row without those
  bool has_rest;

  __device__ __forceinline__ double log_kept(float logit) const {
    return static_cast<double>(logit) * scale - log_total;
  }
  __device__ __forceinline__ double log_rest() const { return rest.log_sum - log_total; }
};

/// Moves the logits at indices[k] to kept[k] and leaves -INFINITY there.
static __device__ __noinline__ Events measure_events(float* x, std::int32_t n, const std::int32_t* indices,
                                                     std::int32_t k, double temperature, float* kept,
                                                     RowScratch& scratch) {
  Largest top;
  for (std::int32_t b = threadIdx.x; b < k; b += kRowThreads) {
    kept[b] = x[indices[b]];
    x[indices[b]] = -INFINITY;
    top.add(kept[b], b);
  }
  __syncthreads();
  Events e{1.0 / temperature, 0.0, {}, k < n};
  double largest = static_cast<double>(row_largest(top, scratch).value) * e.scale;
  if (e.has_rest) {
    e.rest = softmax_of(x, n, temperature, scratch);
    largest = fmax(largest, e.rest.log_sum);
  }
  double total = 0.0;
  for (std::int32_t b = threadIdx.x; b < k; b += kRowThreads)
    total += exp(static_cast<double>(kept[b]) * e.scale - largest);
  total = row_sum(total, scratch);
  if (e.has_rest) total += exp(e.rest.log_sum - largest);
  e.log_total = largest + log(total);
  return e;
}

/// An order of floats as that of integers; -0 is 0.
__device__ __forceinline__ std::uint32_t order_key(float x) {
  const std::uint32_t bits = __float_as_uint(__fadd_rn(x, 0.0F));
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffU : 0x80000000U);
}

/// The k-th largest key of a row, and how many of the elements that have it are among the k largest.
struct Threshold {
  std::uint32_t key;
  std::int32_t count;
};

/// Digit by digit from the top. `histogram`: 256 shared counters.
__device__ inline Threshold find_threshold(const float* x, std::int32_t n, std::int32_t k,
                                           std::int32_t* histogram) {
  __shared__ Threshold found;
  Threshold t{0, k};
  for (int shift = 24; shift >= 0; shift -= 8) {
    const std::uint32_t known = shift == 24 ? 0U : 0xffffffffU << (shift + 8);
    for (int i = threadIdx.x; i < 256; i += kRowThreads) histogram[i] = 0;
    __syncthreads();
    for (std::int32_t i = threadIdx.x; i < n; i += kRowThreads)
      if (const std::uint32_t key = order_key(x[i]); (key & known) == t.key)
        atomicAdd(histogram + ((key >> shift) & 255U), 1);
    __syncthreads();
    if (threadIdx.x == 0) {
      std::uint32_t digit = 255;
      for (; digit > 0 && histogram[digit] < t.count; --digit) t.count -= histogram[digit];
      found = {t.key | (digit << shift), t.count};
    }
    __syncthreads();
    t = found;
  }
  return t;
}

/// indices[k]: of the k largest of x[n], descending, equal ones by index. `order`: k words in memory of this
/// row's own.
__device__ inline void select_largest(const float* x, std::int32_t n, std::int32_t k, std::int32_t* indices,
                                      std::uint64_t* order, RowScratch& scratch) {
  __shared__ std::int32_t histogram[256];
  __shared__ std::int32_t num_taken, num_equal;
  const Threshold threshold = find_threshold(x, n, k, histogram);
  if (threadIdx.x == 0) num_taken = num_equal = 0;
  __syncthreads();
  const auto lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (std::int32_t begin = 0; begin < n; begin += kRowThreads) {
    const std::int32_t i = begin + static_cast<std::int32_t>(threadIdx.x);
    const std::uint32_t key = i < n ? order_key(x[i]) : 0U;
    const bool equal = i < n && key == threshold.key;
    const unsigned equals = __ballot_sync(0xffffffffU, equal);
    if (lane == 0) scratch.indices[warp] = __popc(equals);
    __syncthreads();
    std::int32_t before = num_equal + __popc(equals & ((1U << lane) - 1U)), sum = 0;
    for (unsigned w = 0; w < kRowThreads / 32; ++w) {
      if (w < warp) before += scratch.indices[w];
      sum += scratch.indices[w];
    }
    // The places are not in order yet, and differ from run to run; the ranks below do not.
    if (i < n && (key > threshold.key || (equal && before < threshold.count)))
      order[atomicAdd(&num_taken, 1)] =
          (static_cast<std::uint64_t>(key) << 32) | (0xffffffffU - static_cast<std::uint32_t>(i));
    __syncthreads();
    if (threadIdx.x == 0) num_equal += sum;
    __syncthreads();
  }
  for (std::int32_t b = threadIdx.x; b < k; b += kRowThreads) {
    const std::uint64_t mine = order[b];
    std::int32_t rank = 0;
    for (std::int32_t other = 0; other < k; ++other) rank += order[other] > mine ? 1 : 0;
    indices[rank] = static_cast<std::int32_t>(0xffffffffU - static_cast<std::uint32_t>(mine));
  }
  __syncthreads();
}

}  // namespace farskip::cuda
