// SPDX-License-Identifier: Apache-2.0
#include "passes/fuse_loss.h"

#include <algorithm>
#include <map>
#include <string>
#include <utility>

namespace farskip {
Graph fuse_loss(const Graph& graph) {
  // Name and inputs of a loss → the gradient node over them, whose first input is the gradient of the loss.
  std::map<std::pair<std::string, std::vector<ValueId>>, const Node*> gradients;
  for (const auto& [name, loss] : graph.ops().all())
    for (const Node& node : graph.nodes())
      if (node.op->name == loss.fused_gradient) {
        const auto first = node.inputs.begin() + 1;
        gradients[{name, {first, first + static_cast<std::ptrdiff_t>(loss.max_inputs)}}] = &node;
      }

  Graph out(graph.ops());
  GraphCopier copy(graph, out);
  // The loss must not be read by an op before the gradient runs; only then can its producer move.
  std::map<const Node*, const Node*> forward_of;
  for (std::size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    const auto it = gradients.find({node.op->name, node.inputs});
    if (it == gradients.end()) continue;
    const bool read = std::any_of(graph.nodes().data(), it->second, [&](const Node& reader) {
      return std::any_of(reader.inputs.begin(), reader.inputs.end(), [&](ValueId v) {
        return std::find(node.outputs.begin(), node.outputs.end(), v) != node.outputs.end();
      });
    });
    if (!read) forward_of[it->second] = &node;
  }
  std::map<const Node*, bool> dropped;
  for (const auto& [gradient, forward] : forward_of) dropped[forward] = true;
  for (std::size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (dropped.contains(&node)) continue;
    copy.copy(NodeId(n));
    if (const auto it = forward_of.find(&node); it != forward_of.end())
      for (std::size_t i = 0; i < it->second->outputs.size(); ++i)
        copy.map(it->second->outputs[i], copy(node.outputs[i]));
  }
  copy.finish();
  return out;
}

}  // namespace farskip
