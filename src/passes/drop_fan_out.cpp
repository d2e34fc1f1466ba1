// SPDX-License-Identifier: Apache-2.0
#include "passes/drop_fan_out.h"

namespace farskip {

Graph drop_fan_out(const Graph& graph) {
  Graph out(graph.ops());
  GraphCopier copy(graph, out);
  for (std::size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (node.op->name != "fan_out") {
      copy.copy(NodeId(n));
      continue;
    }
    for (std::size_t i = 0; i < node.inputs.size(); ++i) copy.map(node.outputs[i], copy(node.inputs[i]));
  }
  copy.finish();
  return out;
}

}  // namespace farskip
