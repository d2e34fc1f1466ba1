// SPDX-License-Identifier: Apache-2.0
#pragma once
// Sizes of attention over a cache, the same for every backend.

#include "farskip/backend/kernel.h"
#include "ops/inference_ops.h"

namespace farskip {

/// Sizes of one call, and where keys stand. q [tokens, heads * d]; keys and values have rows of `key_width`
/// and `value_width` elements, of which head g of them has d and dv from g * d and g * dv on.
struct CachedAttentionSizes {
  std::int64_t tokens = 0, heads = 0, kv_heads = 0, d = 0, dv = 0;
  std::int64_t key_width = 0, value_width = 0;
  std::int64_t chunk = 0, block_tokens = 1, max_blocks = 0;  // max_blocks: of a sequence
  float scale = 1.0F;
  // Where the kernel runs.
  const std::int32_t *sequences = nullptr, *positions = nullptr, *table = nullptr;

  constexpr std::int64_t heads_per_kv() const { return heads / kv_heads; }
  /// The last key of token t is its own; negative: it has none.
  constexpr std::int64_t position(std::int64_t t) const { return positions[t]; }
  constexpr std::int64_t first_key(std::int64_t t) const {
    return chunk > 0 ? positions[t] - positions[t] % chunk : 0;
  }
  /// Row of the cache of position p in the sequence of token t.
  constexpr std::int64_t row(std::int64_t t, std::int64_t p) const {
    return static_cast<std::int64_t>(table[sequences[t] * max_blocks + p / block_tokens]) * block_tokens +
           p % block_tokens;
  }
};

inline CachedAttentionSizes cached_attention_sizes(const KernelCall& call) {
  const auto& a = call.get<ops::CachedAttention>();
  const Shape& q = call.in_shape(0);
  return {.tokens = q[0],
          .heads = a.heads,
          .kv_heads = a.kv_heads,
          .d = q.back() / a.heads,
          .dv = a.value_size,
          .key_width = call.in_shape(1).back(),
          .value_width = call.in_shape(call.has(5) ? 5 : 1).back(),
          .chunk = a.chunk,
          .block_tokens = a.block_tokens,
          .max_blocks = call.in_shape(4).back(),
          .scale = static_cast<float>(a.scale),
          .sequences = call.in<std::int32_t>(2),
          .positions = call.in<std::int32_t>(3),
          .table = call.in<std::int32_t>(4)};
}

}  // namespace farskip
