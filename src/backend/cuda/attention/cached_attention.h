// SPDX-License-Identifier: Apache-2.0
#pragma once
// How attention over a cache is laid out on the tensor cores: in bf16, for the head sizes of models.
//
// Tokens are taken in tiles of so many that the queries of one key head fill kLargeRows rows. Within a tile,
// tokens of one sequence that follow each other are a run, which reads its keys once. Runs that need only
// kSmallRows rows (decoding) have blocks of their own. Keys are split into parts, each a block, where there
// are too few tokens to fill the card; their results are put together by another kernel.

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "ops/inference_ops.h"

namespace farskip::cuda {

constexpr int kSmallRows = 16, kLargeRows = 64;

struct CachedAttentionLayout {
  std::int64_t tokens = 0, heads = 0, kv_heads = 0, d = 0, dv = 0;
  std::int64_t group = 1;        // heads of a key head
  std::int64_t tile_tokens = 1;  // of a tile
  std::int64_t head_parts = 1;   // blocks that share the heads of a key head
  std::int64_t splits = 1;       // parts of the keys
  bool keys_alone = false;

  std::int64_t tiles() const { return (tokens + tile_tokens - 1) / tile_tokens; }
  bool has_small() const { return group <= kSmallRows; }
  bool has_large() const { return group > kSmallRows || (tile_tokens > 1 && tokens > 1); }
  /// Whether there are tensor-core kernels of these sizes.
  bool fits() const {
    if (keys_alone) return dv == 512 && (d == 576 || d == 544);
    return d == dv && (d == 64 || d == 128);
  }
  /// f32: what each part of the keys gives, [splits, tokens, heads, dv], then its largest score and its sum,
  /// [splits, tokens, heads, 2].
  std::size_t workspace_bytes() const {
    return splits == 1 ? 0 : static_cast<std::size_t>(splits * tokens * heads * (dv + 2)) * sizeof(float);
  }
};

/// Into how many parts keys are split, so that blocks come in full waves. Lengths are data, so a middling one
/// is assumed; a block costs as much as `extra` more keys, for what begins it and for its result.
inline std::int64_t choose_splits(const CachedAttentionLayout& l, std::int64_t max_keys) {
  constexpr std::int64_t multiprocessors = 132, most = 64;
  const std::int64_t of_each = l.d == 64 ? 5 : l.keys_alone && l.group > kSmallRows ? 1 : 2;
  const std::int64_t at_once = multiprocessors * of_each, extra = l.keys_alone ? 256 : 64;
  const std::int64_t keys = std::min<std::int64_t>(max_keys, 2048),
                     blocks = l.tokens * l.kv_heads * l.head_parts;
  const auto cost = [&](std::int64_t splits) {
    return (blocks * splits + at_once - 1) / at_once * (keys / splits + extra);
  };
  std::int64_t best = 1;
  for (std::int64_t splits = 2; splits <= std::min(most, max_keys / 64); ++splits)
    if (cost(splits) < cost(best)) best = splits;
  return best;
}

/// `max_keys`: of a sequence.
inline CachedAttentionLayout lay_out_cached_attention(const ops::CachedAttention& a, std::int64_t tokens,
                                                      std::int64_t q_width, bool keys_alone,
                                                      std::int64_t max_keys) {
  CachedAttentionLayout l{.tokens = tokens,
                          .heads = a.heads,
                          .kv_heads = a.kv_heads,
                          .d = q_width / a.heads,
                          .dv = a.value_size,
                          .group = a.heads / a.kv_heads,
                          .keys_alone = keys_alone};
  l.tile_tokens = std::max<std::int64_t>(kLargeRows / l.group, 1);
  l.head_parts = (l.group + kLargeRows - 1) / kLargeRows;
  l.splits = choose_splits(l, max_keys);
  return l;
}

}  // namespace farskip::cuda
