// SPDX-License-Identifier: Apache-2.0
#pragma once
// What must come before what in a graph, whatever the schedule.

#include <vector>

#include "farskip/graph/graph.h"

namespace farskip {

/// Edges between nodes, by node id: a node comes after the producers of its inputs, and the new version of
/// state after all other readers of the old one. Each neighbour is listed once, in ascending order.
struct Dependence {
  std::vector<std::vector<NodeId>> before, after;
};
Dependence find_dependence(const Graph& graph);

/// Which nodes each node waits for, directly or not.
class Ancestors {
 public:
  explicit Ancestors(const Dependence& dependence);
  /// Neither needs the other: they may run at the same time.
  bool independent(NodeId a, NodeId b) const { return a != b && !needs(a, b) && !needs(b, a); }
  bool needs(NodeId node, NodeId other) const {
    return (bits_[node.index() * words_ + other.index() / 64] >> (other.index() % 64) & 1) != 0;
  }

 private:
  std::size_t words_;
  std::vector<std::uint64_t> bits_;
};

/// The longest way through the graph: no schedule is shorter, on any number of streams. Seconds by node id.
double longest_path(const Dependence& dependence, const std::vector<double>& seconds);

}  // namespace farskip
