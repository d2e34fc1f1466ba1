// SPDX-License-Identifier: Apache-2.0
#include "farskip/model/layer_graph.h"

#include <algorithm>

namespace farskip {
namespace {

std::string block_name(const LayerBlock& block) {
  const std::string scope = Scope{0, 0, block.layer, block.kind, Phase::forward}.text();
  return scope.substr(0, scope.rfind('.'));
}

}  // namespace

int LayerGraph::find(SubBlock kind, int layer) const {
  for (std::size_t i = 0; i < blocks.size(); ++i)
    if (blocks[i].kind == kind && blocks[i].layer == layer) return static_cast<int>(i);
  return -1;
}

std::vector<int> LayerGraph::reads(int block) const {
  const std::vector<int>& omits = blocks[static_cast<std::size_t>(block)].omits;
  std::vector<int> out;
  for (int i = 0; i < block; ++i)
    if (!std::binary_search(omits.begin(), omits.end(), i)) out.push_back(i);
  return out;
}

std::string LayerGraph::text() const {
  std::string out;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    out += fmt::format("{:3} {}", i, block_name(blocks[i]));
    if (i > 0) out += " reads all before";
    const char* word = ", omits ";
    for (const int omitted : blocks[i].omits) {
      out += word + block_name(blocks[static_cast<std::size_t>(omitted)]);
      word = ", ";
    }
    out += "\n";
  }
  return out;
}

LayerGraph build_layer_graph(const ModelConfig& config) {
  LayerGraph graph;
  graph.blocks.push_back({SubBlock::embedding, -1, {}});
  for (int layer = 0; layer < config.num_layers; ++layer) {
    graph.blocks.push_back({SubBlock::attention, layer, {}});
    if (!config.moe_layers[static_cast<std::size_t>(layer)]) {
      graph.blocks.push_back({SubBlock::dense, layer, {}});
      continue;
    }
    LayerBlock routed{SubBlock::routed, layer, {}};
    if (config.moe.shared_size > 0) {
      routed.omits.push_back(static_cast<int>(graph.blocks.size()));
      graph.blocks.push_back({SubBlock::shared, layer, {}});
    }
    graph.blocks.push_back(std::move(routed));
  }
  graph.blocks.push_back({SubBlock::head, -1, {}});
  return graph;
}

}  // namespace farskip
