// SPDX-License-Identifier: Apache-2.0
#include "passes/rematerialise.h"

#include <unordered_map>

namespace farskip {
namespace {

class Rematerialiser {
 public:
  explicit Rematerialiser(const Graph& graph) : graph_(graph), kept_(graph.num_values(), 0) {
    for (const External& e : graph.externals()) kept_[e.value.index()] = 1;
    std::vector<char> is_read(graph.num_values(), 0);  // in the backward
    for (const Node& node : graph.nodes())
      if (is_backward(node))
        for (const ValueId v : node.inputs)
          if (v) is_read[v.index()] = 1;
    // A cheap value that cannot be repeated is kept like any other, and what is made of it may be repeated.
    for (const Node& node : graph.nodes())
      if (!is_candidate(node) || !can_repeat(node))
        for (const ValueId v : node.outputs) kept_[v.index()] = is_read[v.index()];
  }

  Graph run() {
    Graph out(graph_.ops());
    GraphCopier copy(graph_, out);
    for (std::size_t n = 0; n < graph_.nodes().size(); ++n) {
      const Node& node = graph_.nodes()[n];
      if (is_backward(node)) repeat_inputs(node, out, copy);
      copy.copy(NodeId(n));
    }
    copy.finish();
    return out;
  }

 private:
  static bool is_backward(const Node& node) { return node.scope.phase == Phase::backward; }

  static bool is_candidate(const Node& node) { return node.op->cheap && !is_backward(node); }

  // All inputs stay alive for other readers in the backward. Inputs that are repeated themselves do not
  // count: a chain of copies would keep its beginning alive instead.
  bool can_repeat(const Node& node) const {
    for (const ValueId v : node.inputs)
      if (v && !kept_[v.index()]) return false;
    return true;
  }

  // Points later readers of the values that `reader` reads to fresh copies of their producers.
  void repeat_inputs(const Node& reader, Graph& out, GraphCopier& copy) {
    for (const ValueId v : reader.inputs) {
      const NodeId producer = v ? graph_.value(v).producer : NodeId();
      if (!producer) continue;
      const Node& node = graph_.node(producer);
      if (!is_candidate(node) || !can_repeat(node) || !repeated_.emplace(producer, true).second) continue;
      std::vector<ValueId> inputs;
      for (const ValueId i : node.inputs) inputs.push_back(copy(i));
      Scope scope = node.scope;
      scope.phase = Phase::backward;
      const auto outputs = out.add_node(*node.op, node.attributes, std::move(inputs), scope);
      for (std::size_t i = 0; i < outputs.size(); ++i) copy.map(node.outputs[i], outputs[i]);
    }
  }

  const Graph& graph_;
  std::vector<char> kept_;
  std::unordered_map<NodeId, bool> repeated_;
};

}  // namespace

Graph rematerialise_cheap(const Graph& graph) {
  return Rematerialiser(graph).run();
}

}  // namespace farskip
