// SPDX-License-Identifier: Apache-2.0
#pragma once
// Ops of inference: a cache of keys and values, attention over it, the absorbed products of latent attention,
// the choice of the next token. None has a gradient. Letters as in ops.h; further C rows of a cache, M blocks
// of the longest sequence, L the size of a latent.
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

// ---- sampling.cpp --------------------------------------------------------------------------------

struct Sample {
  std::int64_t num_ids = 0;  // only ids below it are chosen (a vocabulary is often padded); 0: all
  static void fields(auto& self, auto&& f) { f("num_ids", self.num_ids); }
};
/// The next token of n texts: logits f32[n, V], real f32[n, 4] = {temperature, top_p, min_p,
/// repetition_penalty}, whole i32[n, 4] = {top_k, seed (low 32 bits, high 32 bits), counter}, optional seen
/// i32[n, ceil(V/32)] (bit i % 32 of word i / 32: id i stands in the row's text) → ids i32[n]. Every row
/// has parameters of its own, and what it gives depends on nothing in other rows.
///
/// The rules are those of transformers (src/transformers/generation/logits_process.py), in its order:
/// 1. repetition_penalty r > 0: logits of seen ids are divided by r where positive, else multiplied by it
///    (Keskar et al. 2019, "CTRL"). 1: no penalty; so it is without `seen`.
/// 2. temperature T >= 0: logits are divided by T. 0: the largest logit is chosen, the lowest of equal ids,
///    and the rest is left out.
/// 3. top_k: ids are kept whose logits are at least the k-th largest. 0, or V and more: all.
/// 4. top_p: of these, the smallest set of the most likely ids whose probabilities sum to top_p at least
///    (Holtzman et al. 2020). From 1 on: all; the most likely one is always kept.
/// 5. min_p: of these, ids at least min_p times as likely as the most likely one. 0: all.
/// Ids of equal logits are kept or left out together. One uniform number (base/random.h, by seed and counter)
/// goes into the inverse of the cumulated probabilities of what is kept, in order of id. Probabilities are
/// whole multiples of 2^-40 of the largest one (backend/sampling_row.h), so no result depends on the order of
/// sums, and all devices choose the same id.
///
/// An id of logit -infinity is never chosen. Where the largest logit is no finite number (NaN counts as the
/// largest) the id is -1.
ValueId sample(Builder& b, ValueId logits, ValueId real, ValueId whole, ValueId seen,
               const Sample& attributes);

}  // namespace farskip::ops
