// SPDX-License-Identifier: Apache-2.0
#include "passes/dead_code.h"

namespace farskip {

Graph eliminate_dead_code(const Graph& graph) {
  std::vector<char> live(graph.num_values(), 0);
  for (const Output& o : graph.outputs()) live[o.value.index()] = 1;
  for (const StateUpdate& u : graph.updates()) live[u.to.index()] = 1;
  std::vector<char> keep(graph.nodes().size(), 0);
  for (std::size_t n = graph.nodes().size(); n-- > 0;) {
    const Node& node = graph.nodes()[n];
    for (const ValueId v : node.outputs)
      if (live[v.index()]) keep[n] = 1;
    if (!keep[n]) continue;
    for (const ValueId v : node.inputs)
      if (v) live[v.index()] = 1;
    for (const ValueId v : node.outputs)
      if (const ValueId count = graph.type(v).count) live[count.index()] = 1;
  }
  Graph out(graph.ops());
  GraphCopier copy(graph, out);
  for (std::size_t n = 0; n < graph.nodes().size(); ++n)
    if (keep[n]) copy.copy(NodeId(n));
  copy.finish();
  return out;
}

}  // namespace farskip
