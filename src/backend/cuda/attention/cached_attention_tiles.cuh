// SPDX-License-Identifier: Apache-2.0
#pragma once
// Attention over a cache on tensor cores, with an online softmax (Dao et al. 2022, arXiv 2205.14135). A block
// has the queries of one run (cached_attention.h) and key head as the rows of a tile, and goes through its
// part of the keys by kKeys: scores, weights in shared memory, sums of values. While it works on some, the
// copies of the next are under way.

#include <cmath>

#include "backend/cuda/attention/cached_attention_work.cuh"
#include "backend/cuda/mma.cuh"

namespace farskip::cuda::cached {

/// kRowWarps x kColumnWarps warps, each with 16 rows of the tile and its share of the keys of a step (for the
/// scores) and of the columns of values (for the sums).
template <int kRowWarps_, int kColumnWarps_, int kKeys_, int kD_, int kDv_, bool kKeysAlone_>
struct TileShape {
  static constexpr int kRowWarps = kRowWarps_, kColumnWarps = kColumnWarps_, kKeys = kKeys_;
  static constexpr int kD = kD_, kDv = kDv_;
  static constexpr bool kKeysAlone = kKeysAlone_;
  static constexpr int kRows = 16 * kRowWarps, kThreads = 32 * kRowWarps * kColumnWarps;
  static constexpr int kWarpKeys = kKeys / kColumnWarps, kWarpColumns = kDv / kColumnWarps;
  // Rows are 16 bytes longer than a multiple of 32, so that eight of them lie in different banks.
  static constexpr int kLd = kD + 8, kLdValues = kKeysAlone ? kLd : kDv + 8, kLdWeights = kKeys + 8;
  static_assert(kD % 32 == 0 && (kWarpKeys == 8 || kWarpKeys % 16 == 0));
  static_assert(kWarpColumns % 16 == 0 && kKeys % 16 == 0 && kKeys <= kThreads);
};

template <class S>
struct Shared {
  bf16 q[S::kRows * S::kLd];
  bf16 keys[2][S::kKeys * S::kLd];
  bf16 values[S::kKeysAlone ? 1 : 2][S::kKeysAlone ? 8 : S::kKeys * S::kLdValues];
  bf16 weights[S::kRows * S::kLdWeights];
  float of_warp[S::kColumnWarps][S::kRows];  // largest scores, in the end sums
  std::int32_t rows[2][S::kKeys];            // of the cache; -1: no key
};

/// Without keys: zeros, or a part that counts nothing.
template <class S>
__device__ void write_nothing(const Arguments& a, const Work& w) {
  if (a.partial != nullptr) {
    for (int r = int(threadIdx.x); r < w.rows(); r += S::kThreads)
      a.stats[part_place_of(a, w, r)] = make_float2(-INFINITY, 0.0F);
    return;
  }
  for (int i = int(threadIdx.x); i < w.rows() * S::kDv; i += S::kThreads)
    a.out[place_of(a, w, i / S::kDv) * S::kDv + i % S::kDv] = __float2bfloat16_rn(0.0F);
}

template <class S>
__device__ void load_queries(const Arguments& a, const Work& w, Shared<S>& shared) {
  constexpr int kChunks = S::kD / 8;
  for (int i = int(threadIdx.x); i < S::kRows * kChunks; i += S::kThreads) {
    const int row = i / kChunks, column = i % kChunks * 8;
    const bool wanted = row < w.rows();
    const bf16* from = a.q + (wanted ? place_of(a, w, row) * S::kD + column : 0);
    mma::start_copy(shared.q + row * S::kLd + column, from, wanted);
  }
}

/// Rows of the cache of keys [key, key + kKeys).
template <class S>
__device__ __forceinline__ void find_rows(const Arguments& a, const Work& w, int key,
                                          std::int32_t (&rows)[S::kKeys]) {
  const int p = key + int(threadIdx.x);
  if (int(threadIdx.x) >= S::kKeys) return;
  const std::int32_t* table = a.table + std::int64_t(a.sequences[w.token]) * a.max_blocks;
  rows[threadIdx.x] = p < w.end ? table[p / a.block_tokens] * a.block_tokens + p % a.block_tokens : -1;
}

/// Starts the copies of one step; zeros where there is no key.
template <class S>
__device__ void load_step(const Arguments& a, const Work& w, Shared<S>& shared, int stage) {
  const auto copy = [&](const bf16* from, auto width, int ld, bf16* to) {
    constexpr int kChunks = decltype(width)::value / 8;
#pragma unroll 4
    for (int i = int(threadIdx.x); i < S::kKeys * kChunks; i += S::kThreads) {
      const int key = i / kChunks, column = i % kChunks * 8;
      const std::int32_t row = shared.rows[stage][key];
      const std::int64_t at = (std::int64_t(max(row, 0)) * a.kv_heads + w.kv_head) * decltype(width)::value;
      mma::start_copy(to + key * ld + column, from + at + column, row >= 0);
    }
  };
  copy(a.keys, std::integral_constant<int, S::kD>{}, S::kLd, shared.keys[stage]);
  if constexpr (!S::kKeysAlone)
    copy(a.values, std::integral_constant<int, S::kDv>{}, S::kLdValues, shared.values[stage]);
}

/// Products of this warp's 16 queries and kWarpKeys keys. Where these are few, every second 16 of the depth
/// goes into a sum of its own: a product waits for the one before that has the same sum.
template <class S>
__device__ __forceinline__ void multiply_keys(const bf16* q, const bf16* keys,
                                              float (&scores)[S::kWarpKeys / 8][4]) {
  constexpr int kTiles = S::kWarpKeys / 8, kSums = kTiles < 4 ? 2 : 1;
  static_assert(S::kD % (16 * kSums) == 0);
  float sums[kSums][kTiles][4] = {};
#pragma unroll(S::kD > 128 ? 3 : 4)
  for (int k = 0; k < S::kD; k += 16 * kSums) {
    std::uint32_t left[kSums][4], right[4];
#pragma unroll
    for (int s = 0; s < kSums; ++s) mma::load_left(left[s], q + k + 16 * s, S::kLd);
    if constexpr (kTiles == 1) {
      mma::load_deep_right(right, keys + k, S::kLd);
      mma::multiply(sums[0][0], left[0], right[0], right[1]);
      mma::multiply(sums[1][0], left[1], right[2], right[3]);
    } else {
#pragma unroll
      for (int s = 0; s < kSums; ++s) {
#pragma unroll
        for (int n = 0; n < kTiles / 2; ++n) {
          mma::load_right(right, keys + n * 16 * S::kLd + k + 16 * s, S::kLd);
          mma::multiply(sums[s][2 * n], left[s], right[0], right[1]);
          mma::multiply(sums[s][2 * n + 1], left[s], right[2], right[3]);
        }
      }
    }
  }
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e)
      scores[n][e] = kSums == 2 ? sums[0][n][e] + sums[kSums - 1][n][e] : sums[0][n][e];
  }
}

/// sums += weights · values for this warp's 16 rows and kWarpColumns columns.
template <class S>
__device__ __forceinline__ void add_values(const bf16* weights, const bf16* values,
                                           float (&sums)[S::kWarpColumns / 8][4]) {
  std::uint32_t left[4], right[4];
#pragma unroll
  for (int k = 0; k < S::kKeys; k += 16) {
    mma::load_left(left, weights + k, S::kLdWeights);
#pragma unroll
    for (int n = 0; n < S::kWarpColumns / 16; ++n) {
      mma::load_right_by_depth(right, values + k * S::kLdValues + n * 16, S::kLdValues);
      mma::multiply(sums[2 * n], left, right[0], right[1]);
      mma::multiply(sums[2 * n + 1], left, right[2], right[3]);
    }
  }
}

/// Of the four lanes that share rows.
template <class F>
__device__ __forceinline__ float reduce_row(float x, const F& f) {
  x = f(x, __shfl_xor_sync(0xffffffffU, x, 1));
  return f(x, __shfl_xor_sync(0xffffffffU, x, 2));
}

/// The state of a thread's two rows, row lane / 4 of its warp's and the one eight below.
struct RowState {
  int first[2], last[2];  // keys that they see; none where last < first
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0F, 0.0F};
};

/// Scores become weights, in shared memory too; two barriers. Gives the factors of what was summed before.
template <class S>
__device__ __forceinline__ void update_softmax(const Arguments& a, int key, int row0, int column_warp,
                                               float (&scores)[S::kWarpKeys / 8][4], RowState& state,
                                               Shared<S>& shared, float (&factor)[2]) {
  const int lane = int(threadIdx.x) % 32, row = row0 + lane / 4;
  const int column = column_warp * S::kWarpKeys + lane % 4 * 2;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float largest = -INFINITY;
#pragma unroll
    for (int n = 0; n < S::kWarpKeys / 8; ++n) {
#pragma unroll
      for (int e = 2 * h; e < 2 * h + 2; ++e) {
        const int p = key + column + n * 8 + e % 2;
        scores[n][e] = p >= state.first[h] && p <= state.last[h] ? scores[n][e] * a.scale : -INFINITY;
        largest = fmaxf(largest, scores[n][e]);
      }
    }
    largest = reduce_row(largest, [](float x, float y) { return fmaxf(x, y); });
    if (lane % 4 == 0) shared.of_warp[column_warp][row + 8 * h] = largest;
  }
  __syncthreads();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float largest = state.largest[h];
#pragma unroll
    for (int c = 0; c < S::kColumnWarps; ++c) largest = fmaxf(largest, shared.of_warp[c][row + 8 * h]);
    const float base = largest == -INFINITY ? 0.0F : largest;  // no key yet
    factor[h] = exp2f(state.largest[h] - base);
    state.largest[h] = largest;
    float sum = 0.0F;
#pragma unroll
    for (int n = 0; n < S::kWarpKeys / 8; ++n) {
      const float x = exp2f(scores[n][2 * h] - base), y = exp2f(scores[n][2 * h + 1] - base);
      sum += x + y;
      *reinterpret_cast<__nv_bfloat162*>(shared.weights + (row + 8 * h) * S::kLdWeights + column + n * 8) =
          __floats2bfloat162_rn(x, y);
    }
    state.sum[h] = state.sum[h] * factor[h] + sum;
  }
  __syncthreads();
}

/// The rows of this thread to the result, or to that of the part.
template <class S>
__device__ void write_rows(const Arguments& a, const Work& w, int row0, int column_warp, RowState& state,
                           float (&sums)[S::kWarpColumns / 8][4], Shared<S>& shared) {
  const int lane = int(threadIdx.x) % 32;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float sum = reduce_row(state.sum[h], [](float x, float y) { return x + y; });
    if (lane % 4 == 0) shared.of_warp[column_warp][row0 + lane / 4 + 8 * h] = sum;
  }
  __syncthreads();
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = row0 + lane / 4 + 8 * h, column = column_warp * S::kWarpColumns + lane % 4 * 2;
    if (row >= w.rows()) continue;
    float sum = 0.0F;
#pragma unroll
    for (int c = 0; c < S::kColumnWarps; ++c) sum += shared.of_warp[c][row];
    if (a.partial != nullptr) {
      if (column == 0) a.stats[part_place_of(a, w, row)] = make_float2(state.largest[h], sum);
      float* to = a.partial + part_place_of(a, w, row) * S::kDv + column;
#pragma unroll
      for (int n = 0; n < S::kWarpColumns / 8; ++n)
        *reinterpret_cast<float2*>(to + n * 8) = make_float2(sums[n][2 * h], sums[n][2 * h + 1]);
    } else {
      bf16* to = a.out + place_of(a, w, row) * S::kDv + column;
#pragma unroll
      for (int n = 0; n < S::kWarpColumns / 8; ++n)
        *reinterpret_cast<__nv_bfloat162*>(to + n * 8) =
            __floats2bfloat162_rn(sums[n][2 * h] / sum, sums[n][2 * h + 1] / sum);
    }
  }
}

template <class S>
__device__ void attend(const Arguments& a, const Work& w, Shared<S>& shared) {
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32;
  const int row0 = warp / S::kColumnWarps * 16, column_warp = warp % S::kColumnWarps;
  RowState state;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = row0 + lane / 4 + 8 * h, position = w.position + row / w.heads;
    state.first[h] = a.chunk > 0 ? position - position % a.chunk : 0;
    state.last[h] = row < w.rows() ? min(position, w.end - 1) : -1;
  }
  float sums[S::kWarpColumns / 8][4] = {};
  load_queries(a, w, shared);
  find_rows<S>(a, w, w.begin, shared.rows[0]);
  __syncthreads();
  load_step(a, w, shared, 0);
  find_rows<S>(a, w, w.begin + S::kKeys, shared.rows[1]);
  int stage = 0;
  for (int key = w.begin; key < w.end; key += S::kKeys, stage ^= 1) {
    mma::wait_for_copies();
    __syncthreads();  // keys of this step are there; nobody reads those of the step before
    if (key + S::kKeys < w.end) load_step(a, w, shared, stage ^ 1);
    find_rows<S>(a, w, key + 2 * S::kKeys, shared.rows[stage]);
    float scores[S::kWarpKeys / 8][4], factor[2];
    multiply_keys<S>(shared.q + row0 * S::kLd, shared.keys[stage] + column_warp * S::kWarpKeys * S::kLd,
                     scores);
    update_softmax<S>(a, key, row0, column_warp, scores, state, shared, factor);
#pragma unroll
    for (auto& sum : sums) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sum[e] *= factor[e / 2];
    }
    const bf16* values = S::kKeysAlone ? shared.keys[stage] : shared.values[S::kKeysAlone ? 0 : stage];
    add_values<S>(shared.weights + row0 * S::kLdWeights, values + column_warp * S::kWarpColumns, sums);
  }
  write_rows<S>(a, w, row0, column_warp, state, sums, shared);
  __syncthreads();  // shared memory may be used again
}

/// Block x is of one token (kOfToken: it works if a run begins there) or of a tile; y of a key head and a
/// part of its heads; z of a part of the keys.
template <class S, bool kOfToken>
__global__ void __launch_bounds__(S::kThreads) attend_kernel(Arguments a) {
  extern __shared__ uint4 memory[];
  auto& shared = *reinterpret_cast<Shared<S>*>(memory);
  const int tile = kOfToken ? int(blockIdx.x) / a.tile_tokens : int(blockIdx.x), first = tile * a.tile_tokens;
  const std::uint64_t goes_on = find_runs(a, first);
  const int begin = kOfToken ? int(blockIdx.x) - first : 0;
  const int end = kOfToken ? begin + 1 : min(a.tile_tokens, a.tokens - first);
  for (int i = begin; i < end; ++i) {
    if ((goes_on >> i & 1) != 0) continue;
    const std::uint64_t after = i == 63 ? 0 : goes_on >> (i + 1);
    const int count = __ffsll(static_cast<long long>(~after));  // and those that go on
    const int rows = count * min(a.group, kLargeRows);
    if (rows <= a.least_rows || rows > S::kRows) continue;
    const Work work = find_work<S::kKeys>(a, first + i, count);
    if (work.begin >= work.end)
      write_nothing<S>(a, work);
    else
      attend<S>(a, work, shared);
  }
}

}  // namespace farskip::cuda::cached
