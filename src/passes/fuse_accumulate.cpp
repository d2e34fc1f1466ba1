#include "farskip/passes/fuse_accumulate.h"

#include <optional>
#include <unordered_map>

#include "farskip/ops/rules.h"

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
    // Sums are kept wide: kernels do not add to low values in place.
    if (node.op->name != "add" || ops::is_low(graph_.type(node.outputs[0]).dtype)) return;
    for (const std::size_t side : {1U, 0U}) {
      const ValueId sum = node.inputs[side], other = node.inputs[1 - side];
      const auto slot = free_slot(sum);
      if (!slot || !defined_before(other, slot->node)) continue;
      filled_[slot->node] = {slot->input, other};
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
      if (const auto it = filled_.find(id); it != filled_.end()) {
        value = it->second.second;
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
    const auto it = filled_.find(id);
    if (it == filled_.end()) return copy.copy(id);
    std::vector<ValueId> inputs;
    for (const ValueId v : node.inputs) inputs.push_back(copy(v));
    inputs.resize(std::max(inputs.size(), it->second.first + 1));
    inputs[it->second.first] = copy(it->second.second);
    const auto outputs = out.add_node(*node.op, node.attributes, std::move(inputs), node.scope);
    for (std::size_t i = 0; i < outputs.size(); ++i) copy.map(node.outputs[i], outputs[i]);
  }

  const Graph& graph_;
  std::vector<int> num_readers_;
  std::unordered_map<NodeId, std::pair<std::size_t, ValueId>> filled_;
  std::unordered_map<NodeId, ValueId> replaced_;
};

}  // namespace

Graph fuse_accumulate(const Graph& graph) {
  return Fuser(graph).run();
}

}  // namespace farskip
