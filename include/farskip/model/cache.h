// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a model keeps of the tokens that it has read, so that it need not read them again.

#include "farskip/model/model_config.h"

namespace farskip {

/// A cache of one layer: a row of `width` elements a token, [num_blocks · block_tokens, width].
struct CacheSpec {
  std::string name;  // of the state in graphs
  std::int32_t layer = -1;
  std::int64_t width = 0;
};
/// Keys and values of each layer, of the heads that one of `tensor_size` ranks has; of latent attention the
/// latent, followed by the rotated part of the key.
std::vector<CacheSpec> list_caches(const ModelConfig& config, int tensor_size = 1);
/// Elements that a token takes in all of them, on one rank.
std::int64_t cache_elements(const ModelConfig& config, int tensor_size = 1);
/// Heads of keys and values on one rank: its share, or one that several ranks have where there are fewer.
std::int64_t own_kv_heads(const ModelConfig& config, int tensor_size);

enum class CacheKind : std::uint8_t { keys, values, latents };
std::string cache_name(CacheKind kind, std::int32_t layer);

/// A run over a cache. Its tokens are of any sequences, at any positions.
struct CacheShape {
  std::int64_t tokens = 1;                         // T
  std::int64_t outputs = 1;                        // tokens of which logits are wanted
  std::int64_t sequences = 1;                      // N, rows of the table of blocks
  std::int64_t max_blocks = 1;                     // M, of a sequence
  std::int64_t num_blocks = 1, block_tokens = 16;  // of the cache
  // > 0: the run's tokens attend to each other alone, in sequences of this length, as in training; the cache
  // is only written. With `documents`, a sequence holds several texts.
  std::int64_t fresh_length = 0;
  bool documents = false;
  auto operator<=>(const CacheShape&) const = default;
};

}  // namespace farskip
