// SPDX-License-Identifier: Apache-2.0
#include "passes/recompute.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

namespace farskip {
namespace {

class Recomputer {
 public:
  Recomputer(const Graph& graph, const std::set<SubBlock>& blocks, bool collectives)
      : graph_(graph), blocks_(blocks), collectives_(collectives), copy_(graph, out_) {
    for (const Output& o : graph.outputs()) kept_.insert(o.value);
    // What one half of a layer hands to another, the residual stream above all, is where repeating begins:
    // else the first reader in the backward would repeat the whole forward at once.
    for (const Node& node : graph.nodes())
      for (const ValueId v : node.inputs)
        if (v && node.scope.phase == Phase::forward && graph.value(v).producer &&
            half_of(node.scope) != half_of(graph.node(graph.value(v).producer).scope))
          kept_.insert(v);
  }

  Graph run() {
    for (std::size_t n = 0; n < graph_.nodes().size(); ++n) {
      const Node& node = graph_.nodes()[n];
      if (node.scope.phase == Phase::forward) {
        copy_.copy(NodeId(n));
        continue;
      }
      std::vector<ValueId> inputs;
      for (const ValueId v : node.inputs) inputs.push_back(v ? in_backward(v) : v);
      const auto outputs = out_.add_node(*node.op, node.attributes, std::move(inputs), node.scope);
      for (std::size_t i = 0; i < outputs.size(); ++i) copy_.map(node.outputs[i], outputs[i]);
    }
    copy_.finish();
    return std::move(out_);
  }

 private:
  static std::pair<std::int32_t, bool> half_of(const Scope& scope) {
    return {scope.layer, scope.block == SubBlock::attention};
  }

  /// Only arithmetic on activations: whatever gives integers or decides on routing gives few bytes, and
  /// another run of it could only disagree.
  bool is_repeated(NodeId id) const {
    const Node& node = graph_.node(id);
    if (node.scope.phase != Phase::forward || !blocks_.contains(node.scope.block)) return false;
    if (node.op->gradient == nullptr || (node.op->collective && !collectives_)) return false;
    return std::all_of(node.outputs.begin(), node.outputs.end(), [&](ValueId v) {
      const bool is_count = node.op->collective && v != node.outputs.front();  // which came with the rows
      return is_count || (is_float(graph_.type(v).dtype) && !kept_.contains(v));
    });
  }

  /// The value as the backward reads it.
  ValueId in_backward(ValueId v) {
    const NodeId producer = graph_.value(v).producer;
    if (!producer || !is_float(graph_.type(v).dtype) || !is_repeated(producer)) return copy_(v);
    const std::size_t index = graph_.value(v).output_index;
    if (const auto it = repeated_.find(producer); it != repeated_.end()) return it->second[index];
    const Node& node = graph_.node(producer);
    std::vector<ValueId> inputs;
    for (const ValueId i : node.inputs) inputs.push_back(i ? in_backward(i) : i);
    Scope scope = node.scope;
    scope.phase = Phase::backward;
    const auto outputs = out_.add_node(*node.op, node.attributes, std::move(inputs), scope);
    repeated_[producer] = outputs;
    return outputs[index];
  }

  const Graph& graph_;
  const std::set<SubBlock>& blocks_;
  const bool collectives_;
  Graph out_{graph_.ops()};
  GraphCopier copy_;
  std::set<ValueId> kept_;
  std::unordered_map<NodeId, std::vector<ValueId>> repeated_;
};

}  // namespace

Graph recompute(const Graph& graph, const std::set<SubBlock>& blocks, bool collectives) {
  if (blocks.empty()) return graph;
  return Recomputer(graph, blocks, collectives).run();
}

}  // namespace farskip
