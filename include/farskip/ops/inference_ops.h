// SPDX-License-Identifier: Apache-2.0
#pragma once
// Ops of inference: a cache of keys and values, attention over it, the absorbed products of latent attention.
// None has a gradient. Letters as in ops.h; further C rows of a cache, M blocks of the longest sequence, L
// the size of a latent.
//
// A cache is a matrix with a row a token. Its rows are dealt out in blocks of `block_tokens`; a table i32[N,
// M] names the blocks of each sequence, so that the token at position p of sequence s has row table[s, p /
// block_tokens] · block_tokens + p mod block_tokens.

#include "farskip/ops/ops.h"

namespace farskip::ops {

// ---- cache.cpp -----------------------------------------------------------------------------------

/// cache[C, W], rows i32[T], x[T, W1], [more[T, W - W1]] → the cache in whose row rows[t] stands row t of x,
/// followed by that of `more`. Nothing is written for a negative rows[t]; no two others may be equal. In
/// place.
ValueId write_cache(Builder& b, ValueId cache, ValueId rows, ValueId x, ValueId more = {});

struct CachedAttention {
  std::int64_t heads = 0, kv_heads = 0;  // as in Attention
  double scale = 1.0;
  std::int64_t chunk = 0;         // as in Attention
  std::int64_t block_tokens = 0;  // rows of a block
  std::int64_t value_size = 0;    // Dv
  static void fields(auto& self, auto&& f) {
    f("heads", self.heads);
    f("kv_heads", self.kv_heads);
    f("scale", self.scale);
    f("chunk", self.chunk);
    f("block_tokens", self.block_tokens);
    f("value_size", self.value_size);
  }
};
/// Where the tokens of a run stand.
struct CachePlace {
  ValueId table;      // i32[N, M]
  ValueId sequences;  // i32[T]: row of the table
  ValueId positions;  // i32[T]; negative: there is no token, and what is computed for it means nothing
};
/// q[T, A*D], keys[C, G*D], place, [values[C, G*Dv]] → [T, A*Dv]. Token t attends to the positions of its
/// sequence from 0 (or the beginning of its chunk) to its own, whose keys have been written. Without values
/// they are the first Dv elements of the keys of a head: the latents of absorbed latent attention, G = 1. The
/// row of a token without a position is zeros.
ValueId cached_attention(Builder& b, ValueId q, ValueId keys, const CachePlace& place, ValueId values,
                         const CachedAttention& attributes);

// Latent attention, absorbed (DeepSeek-V2, arXiv 2405.04434, section 2.1.2): a key is W_k c of a latent c, so
// q · (W_k c) = (W_kᵀ q) · c, and Σ p (W_v c) = W_v (Σ p c). Keys and values are never formed. The rows of
// head a in w[A*(nope+v), L] are those of W_k, then those of W_v.

/// q[T, A*(nope+rope)], w[A*(nope+v), L] → [T, A*(L+rope)]: of each head W_kᵀ q, then its rotated part as it
/// is.
ValueId absorb_query(Builder& b, ValueId q, ValueId w, const MlaKeyValue& attributes);
/// x[T, A*L], w[A*(nope+v), L] → [T, A*v]: of each head W_v x.
ValueId expand_value(Builder& b, ValueId x, ValueId w, const MlaKeyValue& attributes);

}  // namespace farskip::ops
