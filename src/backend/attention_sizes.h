// SPDX-License-Identifier: Apache-2.0
#pragma once
// What an attention op computes, the same for every backend.

#include <algorithm>

#include "farskip/ops/ops.h"

namespace farskip {

/// Sizes of one call, and which keys a query sees. Heads lie in rows: q [tokens, heads * d], k [tokens,
/// kv_heads * d], v [tokens, kv_heads * dv]. Positions are within a sequence.
struct AttentionSizes {
  std::int64_t sequences = 0, length = 0, heads = 0, kv_heads = 0, d = 0, dv = 0;
  std::int64_t chunk = 0;  // > 0: position i sees [i - i mod chunk, i] only
  float scale = 1.0F;
  const std::int32_t* document_start = nullptr;  // [tokens] where the kernel runs, or nullptr: one document

  constexpr std::int64_t tokens() const { return sequences * length; }
  constexpr std::int64_t heads_per_kv() const { return heads / kv_heads; }
  /// First key of query i; the last one is i.
  constexpr std::int64_t first_key(std::int64_t sequence, std::int64_t i) const {
    const std::int64_t chunk_start = chunk > 0 ? i - i % chunk : 0;
    if (document_start == nullptr) return chunk_start;
    const std::int64_t document = document_start[sequence * length + i];
    return document > chunk_start ? document : chunk_start;
  }
};

inline AttentionSizes attention_sizes(const ops::Attention& a, const Shape& q, const Shape& v,
                                      const std::int32_t* document_start) {
  return {.sequences = q[0] / std::max<std::int64_t>(a.sequence_length, 1),
          .length = a.sequence_length,
          .heads = a.heads,
          .kv_heads = a.kv_heads,
          .d = q.back() / a.heads,
          .dv = v.back() / a.kv_heads,
          .chunk = a.chunk,
          .scale = static_cast<float>(a.scale),
          .document_start = document_start};
}

}  // namespace farskip
