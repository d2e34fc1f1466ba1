// SPDX-License-Identifier: Apache-2.0
#include "schedule/dependence.h"

#include <algorithm>

namespace farskip {
namespace {

/// Calls visit(node) for every node after all that come before it. (In graph order an edge may point
/// backwards through state.)
template <class F>
void visit_in_order(const Dependence& dependence, const F& visit) {
  const std::size_t size = dependence.before.size();
  std::vector<std::size_t> open(size);
  std::vector<NodeId> ready;
  for (std::size_t n = 0; n < size; ++n) {
    open[n] = dependence.before[n].size();
    if (open[n] == 0) ready.push_back(NodeId(n));
  }
  while (!ready.empty()) {
    const NodeId node = ready.back();
    ready.pop_back();
    visit(node);
    for (const NodeId a : dependence.after[node.index()])
      if (--open[a.index()] == 0) ready.push_back(a);
  }
}

void sort_unique(std::vector<NodeId>& ids) {
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
}

}  // namespace

Dependence find_dependence(const Graph& graph) {
  const std::size_t size = graph.nodes().size();
  Dependence d{std::vector<std::vector<NodeId>>(size), std::vector<std::vector<NodeId>>(size)};
  std::vector<std::vector<NodeId>> readers(graph.num_values());
  const auto read = [&](NodeId node, ValueId v) {
    readers[v.index()].push_back(node);
    if (const NodeId producer = graph.value(v).producer) d.before[node.index()].push_back(producer);
  };
  for (std::size_t n = 0; n < size; ++n)
    for (const ValueId v : graph.nodes()[n].inputs) {
      if (!v) continue;
      read(NodeId(n), v);
      if (const ValueId count = graph.type(v).count) read(NodeId(n), count);
    }
  for (const StateUpdate& u : graph.updates()) {
    const NodeId writer = graph.value(u.to).producer;
    if (!writer) continue;
    for (const NodeId reader : readers[u.from.index()])
      if (reader != writer) d.before[writer.index()].push_back(reader);
  }
  for (std::size_t n = 0; n < size; ++n) {
    sort_unique(d.before[n]);
    for (const NodeId b : d.before[n]) d.after[b.index()].push_back(NodeId(n));
  }
  return d;
}

Ancestors::Ancestors(const Dependence& dependence)
    : words_((dependence.before.size() + 63) / 64), bits_(words_ * dependence.before.size(), 0) {
  visit_in_order(dependence, [&](NodeId node) {
    std::uint64_t* const mine = &bits_[node.index() * words_];
    for (const NodeId b : dependence.before[node.index()]) {
      const std::uint64_t* const theirs = &bits_[b.index() * words_];
      for (std::size_t w = 0; w < words_; ++w) mine[w] |= theirs[w];
      mine[b.index() / 64] |= std::uint64_t{1} << (b.index() % 64);
    }
  });
}

double longest_path(const Dependence& dependence, const std::vector<double>& seconds) {
  std::vector<double> end(dependence.before.size(), 0.0);
  double longest = 0;
  visit_in_order(dependence, [&](NodeId node) {
    double begin = 0;
    for (const NodeId b : dependence.before[node.index()]) begin = std::max(begin, end[b.index()]);
    end[node.index()] = begin + seconds[node.index()];
    longest = std::max(longest, end[node.index()]);
  });
  return longest;
}

}  // namespace farskip
