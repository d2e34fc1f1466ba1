#include "farskip/passes/farskip.h"

#include <algorithm>

namespace farskip {
namespace {

void omit(LayerBlock& block, int contribution) {
  if (contribution < 0) return;
  block.omits.push_back(contribution);
  std::sort(block.omits.begin(), block.omits.end());
}

}  // namespace

LayerGraph rewire_farskip(const LayerGraph& graph, const FarSkipConfig& config) {
  LayerGraph out = graph;
  const bool attention = config.mode == FarSkipMode::attention || config.mode == FarSkipMode::full;
  const bool mlp = config.mode == FarSkipMode::mlp || config.mode == FarSkipMode::full;
  for (LayerBlock& block : out.blocks) {
    if (block.layer < 0 || !config.layers.contains(block.layer)) continue;
    if (block.kind == SubBlock::attention) {
      if (attention) omit(block, graph.find(SubBlock::routed, block.layer - 1));
    } else if (mlp) {
      omit(block, graph.find(SubBlock::attention, block.layer));
    }
  }
  return out;
}

}  // namespace farskip
