// SPDX-License-Identifier: Apache-2.0
#include "farskip/passes/merge_all_reduces.h"

#include "farskip/ops/ops.h"

namespace farskip {
namespace {

/// x + Σ over ranks of `partial`, where neither the sum over ranks nor the addition has been emitted yet. x
/// may be absent.
struct Unfinished {
  ValueId x, partial;  // in the new graph
  const Node* all_reduce = nullptr;
};

class Merger {
 public:
  explicit Merger(const Graph& graph) : graph_(graph), copy_(graph, out_), reads_(graph.num_values(), 0) {
    for (const Node& node : graph.nodes())
      for (const ValueId v : node.inputs)
        if (v) ++reads_[v.index()];
    for (const Output& o : graph.outputs()) reads_[o.value.index()] += 2;  // must be there
    for (const StateUpdate& u : graph.updates()) reads_[u.to.index()] += 2;
    find_mergeable();
  }

  Graph run() {
    for (std::size_t n = 0; n < graph_.nodes().size(); ++n) {
      const Node& node = graph_.nodes()[n];
      if (is_sum_over_ranks(node) && waits_[node.outputs[0].index()])
        unfinished_[node.outputs[0]] = {{}, copy_(node.inputs[0]), &node};
      else if (is_add(node) && touches_unfinished(node))
        add(node);
      else
        copy_.copy(NodeId(n));
    }
    copy_.finish();
    return std::move(out_);
  }

 private:
  static bool is_add(const Node& node) { return node.op->name == "add"; }
  static bool is_sum_over_ranks(const Node& node) {
    return node.op->name == "all_reduce" && node.inputs.size() == 1;
  }
  const Node* producer(ValueId v) const {
    const NodeId id = graph_.value(v).producer;
    return id ? &graph_.node(id) : nullptr;
  }

  /// What is better not emitted before its reader: only where that adds another sum over ranks.
  void find_mergeable() {
    waits_.assign(graph_.num_values(), 0);
    std::vector<char> has_sum(graph_.num_values(), 0);  // one reader; contains a sum over ranks
    for (const Node& node : graph_.nodes()) {
      if (is_sum_over_ranks(node)) has_sum[node.outputs[0].index()] = reads_[node.outputs[0].index()] == 1;
      if (!is_add(node)) continue;
      const ValueId a = node.inputs[0], b = node.inputs[1];
      const bool both = has_sum[a.index()] && has_sum[b.index()] && same_axis(a, b);
      has_sum[node.outputs[0].index()] =
          reads_[node.outputs[0].index()] == 1 && (has_sum[a.index()] || has_sum[b.index()]);
      if (!both) continue;
      mark(a);
      mark(b);
    }
  }
  /// The sums over ranks in a value, and the additions on the way to them, are unfinished.
  void mark(ValueId v) {
    const Node* const made_by = producer(v);
    waits_[v.index()] = 1;
    if (is_sum_over_ranks(*made_by)) return;
    for (const ValueId input : made_by->inputs)
      if (find_sum(input) != nullptr) return mark(input);
  }
  const Node* find_sum(ValueId v) const {
    const Node* const made_by = producer(v);
    if (made_by == nullptr || reads_[v.index()] != 1) return nullptr;
    if (is_sum_over_ranks(*made_by)) return made_by;
    if (!is_add(*made_by)) return nullptr;
    for (const ValueId input : made_by->inputs)
      if (const Node* const found = find_sum(input)) return found;
    return nullptr;
  }
  bool same_axis(ValueId a, ValueId b) const {
    const Node *const x = find_sum(a), *const y = find_sum(b);
    return x != nullptr && y != nullptr && x->attributes.text() == y->attributes.text();
  }

  bool touches_unfinished(const Node& node) const {
    return unfinished_.contains(node.inputs[0]) || unfinished_.contains(node.inputs[1]);
  }

  void add(const Node& node) {
    Builder b{out_, node.scope};
    Unfinished sum;
    for (const ValueId v : node.inputs) {
      const auto it = unfinished_.find(v);
      const Unfinished part = it != unfinished_.end() ? it->second : Unfinished{copy_(v), {}, nullptr};
      if (part.all_reduce != nullptr) sum.all_reduce = part.all_reduce;
      for (const auto& [into, from] : {std::pair{&sum.x, part.x}, {&sum.partial, part.partial}})
        if (from) *into = *into ? ops::add(b, *into, from) : from;
    }
    const ValueId out = node.outputs[0];
    if (waits_[out.index()] != 0) {
      unfinished_[out] = sum;
      return;
    }
    const ValueId whole =
        out_.add_node(*sum.all_reduce->op, sum.all_reduce->attributes, {sum.partial}, node.scope)[0];
    copy_.map(out, sum.x ? ops::add(b, sum.x, whole) : whole);
  }

  const Graph& graph_;
  Graph out_{graph_.ops()};
  GraphCopier copy_;
  std::vector<int> reads_;
  std::vector<char> waits_;
  std::unordered_map<ValueId, Unfinished> unfinished_;
};

}  // namespace

Graph merge_all_reduces(const Graph& graph) {
  return Merger(graph).run();
}

}  // namespace farskip
