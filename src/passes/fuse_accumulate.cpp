// SPDX-License-Identifier: Apache-2.0
#include "passes/fuse_accumulate.h"

#include <map>
#include <optional>
#include <unordered_map>

namespace farskip {
namespace {

struct Slot {
  NodeId node;
  std::size_t input;
};

class Fuser {
 public:
  explicit Fuser(const Graph& graph) : graph_(graph), num_readers_(graph.num_values(), 0) {
    for (const Node& node : graph.nodes())
      for (const ValueId v : node.inputs)
        if (v) ++num_readers_[v.index()];
    for (const Output& o : graph.outputs()) ++num_readers_[o.value.index()];
    for (const StateUpdate& u : graph.updates()) ++num_readers_[u.to.index()];
  }

  Graph run() {
    for (std::size_t n = 0; n < graph_.nodes().size(); ++n) try_fuse(NodeId(n));
    Graph out(graph_.ops());
    GraphCopier copy(graph_, out);
    for (std::size_t n = 0; n < graph_.nodes().size(); ++n) copy_node(NodeId(n), out, copy);
    copy.finish();
    return out;
  }

 private:
  void try_fuse(NodeId id) {
    const Node& node = graph_.node(id);
    if (node.op->name != "add") return;
    for (const std::size_t side : {1U, 0U}) {
      const ValueId sum = node.inputs[side], other = node.inputs[1 - side];
      const auto slot = free_slot(sum);
      if (!slot || !defined_before(other, slot->node)) continue;
      filled_[{slot->node, slot->input}] = other;
      replaced_[id] = sum;
      return;
    }
  }

  // The accumulate input of value's producer, or, when that is taken by a chain of accumulating ops, the
  // free one at the start of the chain.
  std::optional<Slot> free_slot(ValueId value) const {
    while (graph_.value(value).producer && num_readers_[value.index()] == 1) {
      const NodeId id = graph_.value(value).producer;
      const Node& node = graph_.node(id);
      if (replaced_.contains(id)) {  // an add that was fused away: its sum continues in the fused op
        value = replaced_.at(id);
        continue;
      }
      const InPlace* rule = nullptr;
      for (const InPlace& r : node.op->accumulates)
        if (node.outputs[r.output] == value) rule = &r;
      if (rule == nullptr) return std::nullopt;
      if (const auto it = filled_.find({id, rule->input}); it != filled_.end()) {
        value = it->second;
      } else if (rule->input < node.inputs.size() && node.inputs[rule->input]) {
        value = node.inputs[rule->input];
      } else {
        return Slot{id, rule->input};
      }
    }
    return std::nullopt;
  }

  bool defined_before(ValueId value, NodeId node) const {
    const NodeId producer = graph_.value(value).producer;
    return !producer || producer < node;
  }

  void copy_node(NodeId id, Graph& out, GraphCopier& copy) const {
    const Node& node = graph_.node(id);
    if (const auto it = replaced_.find(id); it != replaced_.end()) {
      copy.map(node.outputs[0], copy(it->second));
      return;
    }
    std::vector<ValueId> inputs;
    for (const ValueId v : node.inputs) inputs.push_back(copy(v));
    for (const InPlace& rule : node.op->accumulates) {
      const auto it = filled_.find({id, rule.input});
      if (it == filled_.end()) continue;
      inputs.resize(std::max(inputs.size(), rule.input + 1));
      inputs[rule.input] = copy(it->second);
    }
    const auto outputs = out.add_node(*node.op, node.attributes, std::move(inputs), node.scope);
    for (std::size_t i = 0; i < outputs.size(); ++i) copy.map(node.outputs[i], outputs[i]);
  }

  const Graph& graph_;
  std::vector<int> num_readers_;
  std::map<std::pair<NodeId, std::size_t>, ValueId> filled_;  // by node and input
  std::unordered_map<NodeId, ValueId> replaced_;
};

}  // namespace

Graph fuse_accumulate(const Graph& graph) {
  return Fuser(graph).run();
}

}  // namespace farskip
