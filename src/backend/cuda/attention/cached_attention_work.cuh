// SPDX-License-Identifier: Apache-2.0
#pragma once
// Attention over a cache: which queries and keys a block works on, and where its results go.

#include "backend/cuda/attention/cached_attention.h"
#include "backend/cuda/launch.cuh"

namespace farskip::cuda::cached {

struct Arguments {
  const bf16 *q, *keys, *values;  // values: nullptr where they are the first columns of keys
  bf16* out;
  float* partial;  // [splits, tokens, heads, dv]; nullptr: one part
  float2* stats;   // [splits, tokens, heads]: largest score (base 2) and sum of the weights relative to it
  const std::int32_t *sequences, *positions, *table;
  int tokens, heads, kv_heads, group, tile_tokens, head_parts;
  int chunk, block_tokens, max_blocks, splits;
  int least_rows;  // runs of so many rows or fewer are those of another kernel
  float scale;     // times log2(e)
};

/// Tokens of a tile that go on where the token before stands: bit i for token i.
__device__ __forceinline__ std::uint64_t find_runs(const Arguments& a, int first) {
  const int lane = int(threadIdx.x) % 32;
  const auto goes_on = [&](int i) {
    const int t = first + i;
    return i > 0 && i < a.tile_tokens && t < a.tokens && a.positions[t - 1] >= 0 &&
           a.positions[t] == a.positions[t - 1] + 1 && a.sequences[t] == a.sequences[t - 1];
  };
  const unsigned low = __ballot_sync(0xffffffffU, goes_on(lane));
  const unsigned high = a.tile_tokens > 32 ? __ballot_sync(0xffffffffU, goes_on(lane + 32)) : 0U;
  return std::uint64_t(high) << 32 | low;
}

/// The queries of one block, and its part of the keys.
struct Work {
  int token, count;          // the run
  int kv_head, head, heads;  // heads [head, head + heads) of the key head's
  int position;              // of the first token
  int begin, end;            // keys
  __device__ __forceinline__ int rows() const { return count * heads; }
  __device__ __forceinline__ int token_of(int row) const { return token + row / heads; }
  __device__ __forceinline__ int head_of(int row) const { return head + row % heads; }
};

/// Parts of the keys are whole steps of kKeys.
template <int kKeys>
__device__ Work find_work(const Arguments& a, int token, int count) {
  const int part = int(blockIdx.y) % a.head_parts, kv_head = int(blockIdx.y) / a.head_parts;
  Work w{token, count, kv_head, kv_head * a.group + part * kLargeRows, 0, a.positions[token], 0, 0};
  w.heads = min(kLargeRows, (kv_head + 1) * a.group - w.head);
  if (w.position < 0) return w;
  const int first = a.chunk > 0 ? w.position - w.position % a.chunk : 0, past = w.position + count;
  const int steps = (past - first + kKeys - 1) / kKeys;
  const int each = (steps + a.splits - 1) / a.splits * kKeys;
  w.begin = min(past, first + int(blockIdx.z) * each);
  w.end = min(past, w.begin + each);
  return w;
}

/// Where a row of the tile stands in [tokens, heads], or in its copy for this part of the keys.
__device__ __forceinline__ std::int64_t place_of(const Arguments& a, const Work& w, int row) {
  return std::int64_t(w.token_of(row)) * a.heads + w.head_of(row);
}
__device__ __forceinline__ std::int64_t part_place_of(const Arguments& a, const Work& w, int row) {
  return std::int64_t(blockIdx.z) * a.tokens * a.heads + place_of(a, w, row);
}

}  // namespace farskip::cuda::cached
