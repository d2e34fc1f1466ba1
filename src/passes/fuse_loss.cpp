#include "farskip/passes/fuse_loss.h"

#include <map>

namespace farskip {

Graph fuse_loss(const Graph& graph) {
  // (h, w, targets) → the gradient node over them.
  std::map<std::vector<ValueId>, const Node*> gradients;
  for (const Node& node : graph.nodes())
    if (node.op->name == "linear_cross_entropy_grad")
      gradients[{node.inputs[1], node.inputs[2], node.inputs[3]}] = &node;

  Graph out(graph.ops());
  GraphCopier copy(graph, out);
  // The loss must not be read by an op before the gradient runs; only then can its producer move.
  std::map<const Node*, const Node*> forward_of;
  for (std::size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (node.op->name != "linear_cross_entropy") continue;
    const auto it = gradients.find(node.inputs);
    if (it == gradients.end()) continue;
    bool read = false;
    for (const Node& reader : graph.nodes())
      for (const ValueId v : reader.inputs) read = read || v == node.outputs[0] || v == node.outputs[1];
    if (!read) forward_of[it->second] = &node;
  }
  std::map<const Node*, bool> dropped;
  for (const auto& [gradient, forward] : forward_of) dropped[forward] = true;
  for (std::size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (dropped.contains(&node)) continue;
    copy.copy(NodeId(n));
    if (const auto it = forward_of.find(&node); it != forward_of.end())
      for (std::size_t i = 0; i < 2; ++i) copy.map(it->second->outputs[i], copy(node.outputs[i]));
  }
  copy.finish();
  return out;
}

}  // namespace farskip
