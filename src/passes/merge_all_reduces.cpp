// SPDX-License-Identifier: Apache-2.0
#include "passes/merge_all_reduces.h"

#include <deque>
#include <unordered_set>

#include "farskip/ops/ops.h"

namespace farskip {
namespace {

/// A sum of which several terms are sums over ranks that nothing else reads.
struct Group {
  std::vector<ValueId> plain, reduced;  // terms from left to right
  std::size_t missing = 0;              // of `reduced`, what has not been passed yet
  ValueId whole;                        // in the new graph: the one sum over ranks
};

class Merger {
 public:
  explicit Merger(const Graph& graph)
      : graph_(graph), copy_(graph, out_), reads_(graph.num_values(), 0), reader_(graph.num_values()) {
    for (std::size_t n = 0; n < graph.nodes().size(); ++n)
      for (const ValueId v : graph.nodes()[n].inputs)
        if (v) {
          ++reads_[v.index()];
          reader_[v.index()] = NodeId(n);
        }
    for (const Output& o : graph.outputs()) reader_[o.value.index()] = NodeId();
    for (const StateUpdate& u : graph.updates()) reader_[u.to.index()] = NodeId();
    for (const Node& node : graph.nodes())
      if (is_add(node) && !is_term(node.outputs[0])) find_group(node.outputs[0]);
  }

  Graph run() {
    for (std::size_t n = 0; n < graph_.nodes().size(); ++n) {
      const Node& node = graph_.nodes()[n];
      const ValueId out = node.outputs[0];
      if (const auto it = group_of_.find(out); it != group_of_.end())
        pass_reduced(*it->second, node);
      else if (const auto root = roots_.find(out); root != roots_.end())
        add(*root->second, node);
      else if (!inner_.contains(out))
        copy_.copy(NodeId(n));
    }
    copy_.finish();
    return std::move(out_);
  }

 private:
  static bool is_add(const Node& node) { return node.op->name == "add"; }
  const Node* producer(ValueId v) const {
    const NodeId id = graph_.value(v).producer;
    return id ? &graph_.node(id) : nullptr;
  }
  /// Read by one addition and nothing else.
  bool is_term(ValueId v) const {
    const NodeId reader = reader_[v.index()];
    return reads_[v.index()] == 1 && reader && is_add(graph_.node(reader));
  }
  bool is_reduced_term(ValueId v) const {
    const Node* const made_by = producer(v);
    return made_by != nullptr && made_by->op->name == "all_reduce" && made_by->inputs.size() == 1 &&
           is_term(v);
  }

  void find_terms(ValueId v, bool root, Group& group, std::vector<ValueId>& inner) const {
    const Node* const made_by = producer(v);
    if (made_by != nullptr && is_add(*made_by) && (root || is_term(v))) {
      if (!root) inner.push_back(v);
      for (const ValueId term : made_by->inputs) find_terms(term, false, group, inner);
    } else {
      (is_reduced_term(v) ? group.reduced : group.plain).push_back(v);
    }
  }

  void find_group(ValueId root) {
    Group group;
    std::vector<ValueId> inner;
    find_terms(root, true, group, inner);
    if (group.reduced.size() < 2) return;
    const std::string axis = producer(group.reduced[0])->attributes.text();
    for (const ValueId v : group.reduced)
      if (producer(v)->attributes.text() != axis) return;
    group.missing = group.reduced.size();
    Group& kept = groups_.emplace_back(std::move(group));
    roots_[root] = &kept;
    for (const ValueId v : kept.reduced) group_of_[v] = &kept;
    inner_.insert(inner.begin(), inner.end());
  }

  /// The last of a group begins the transport, so that what follows in the graph may run meanwhile.
  void pass_reduced(Group& group, const Node& node) {
    if (--group.missing > 0) return;
    Builder b{out_, node.scope};
    ValueId sum;
    for (const ValueId v : group.reduced) {
      const ValueId part = copy_(producer(v)->inputs[0]);
      sum = sum ? ops::add(b, sum, part) : part;
    }
    group.whole = out_.add_node(*node.op, node.attributes, {sum}, node.scope)[0];
  }

  void add(const Group& group, const Node& node) {
    Builder b{out_, node.scope};
    ValueId sum;
    for (const ValueId v : group.plain) sum = sum ? ops::add(b, sum, copy_(v)) : copy_(v);
    copy_.map(node.outputs[0], sum ? ops::add(b, sum, group.whole) : group.whole);
  }

  const Graph& graph_;
  Graph out_{graph_.ops()};
  GraphCopier copy_;
  std::vector<int> reads_;
  std::vector<NodeId> reader_;  // the last one
  std::deque<Group> groups_;
  std::unordered_map<ValueId, Group*> roots_, group_of_;  // by the sum; by its terms that are sums over ranks
  std::unordered_set<ValueId> inner_;                     // additions that a group takes the place of
};

}  // namespace

Graph merge_all_reduces(const Graph& graph) {
  return Merger(graph).run();
}

}  // namespace farskip
