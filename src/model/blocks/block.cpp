// SPDX-License-Identifier: Apache-2.0
#include "model/blocks/block.h"

namespace farskip {

std::unique_ptr<Block> make_block(const ModelConfig& config, SubBlock kind) {
  switch (kind) {
    case SubBlock::attention:
      return config.mla ? make_latent_attention(config) : make_grouped_query_attention(config);
    case SubBlock::dense:
    case SubBlock::shared:
      return make_mlp(config, kind);
    case SubBlock::routed:
      return make_routed_experts(config);
    default:
      throw InternalError("not a block of a layer");
  }
}

}  // namespace farskip
