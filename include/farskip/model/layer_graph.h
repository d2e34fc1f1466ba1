// SPDX-License-Identifier: Apache-2.0
#pragma once
// LayerGraph: who reads what. The residual stream is an ordered list of contributions, one per sub-block;
// the input of a sub-block is the sum, in order, of all contributions before it except the omitted ones.
// A wiring is nothing but these lists, so that rewiring a model is a function LayerGraph → LayerGraph.

#include <string>
#include <vector>

#include "farskip/model/model_config.h"

namespace farskip {

struct LayerBlock {
  SubBlock kind = SubBlock::none;  // embedding, attention, shared, routed, dense or head
  int layer = -1;
  std::vector<int> omits;  // contributions (indices of earlier blocks) that it does not read, ascending
  friend bool operator==(const LayerBlock&, const LayerBlock&) = default;
};

struct LayerGraph {
  std::vector<LayerBlock> blocks;  // block i contributes contribution i

  /// Index of a block; -1 where the layer has none of the kind.
  int find(SubBlock kind, int layer) const;
  /// Contributions that block i reads, in order.
  std::vector<int> reads(int block) const;
  /// One line a block: "  5 1.routed reads all before, omits 1.attention, 1.shared".
  std::string text() const;
  friend bool operator==(const LayerGraph&, const LayerGraph&) = default;
};

/// Standard wiring: every sub-block reads everything before it, but for the shared expert beside the
/// routed ones, which read the same input.
LayerGraph build_layer_graph(const ModelConfig& config);

}  // namespace farskip
