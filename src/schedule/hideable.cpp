// SPDX-License-Identifier: Apache-2.0
#include "schedule/hideable.h"

#include <algorithm>
#include <utility>

#include "schedule/dependence.h"

namespace farskip {
namespace {

/// Maximum flow in a bipartite network (Dinic 1970): source → left (capacity) → right (capacity) → sink,
/// edges between the sides without limit.
class BipartiteFlow {
 public:
  BipartiteFlow(std::vector<double> left, std::vector<double> right,
                std::vector<std::vector<std::int32_t>> edges)
      : left_(std::move(left)), right_(std::move(right)), edges_(std::move(edges)), back_(right_.size()) {
    flow_.resize(edges_.size());
    for (std::size_t l = 0; l < edges_.size(); ++l) flow_[l].assign(edges_[l].size(), 0.0);
    for (std::size_t l = 0; l < edges_.size(); ++l)
      for (std::size_t e = 0; e < edges_[l].size(); ++e)
        back_[static_cast<std::size_t>(edges_[l][e])].push_back({l, e});
    for (const double c : left_) tiny_ = std::max(tiny_, c * 1e-12);
  }

  double run() {
    double total = 0;
    while (label()) {
      next_left_.assign(left_.size(), 0);
      next_right_.assign(right_.size(), 0);
      for (std::size_t l = 0; l < left_.size(); ++l)
        while (left_[l] > tiny_) {
          const double pushed = push_left(l, left_[l]);
          if (pushed <= tiny_) break;
          left_[l] -= pushed;
          total += pushed;
        }
    }
    return total;
  }

 private:
  struct Edge {
    std::size_t left, index;
  };

  /// Distances from the source; false when the sink is out of reach.
  bool label() {
    level_left_.assign(left_.size(), -1);
    level_right_.assign(right_.size(), -1);
    std::vector<std::size_t> lefts, rights;
    for (std::size_t l = 0; l < left_.size(); ++l)
      if (left_[l] > tiny_) {
        level_left_[l] = 0;
        lefts.push_back(l);
      }
    bool reached = false;
    for (int level = 1; !lefts.empty() && !reached; level += 2) {
      rights.clear();
      for (const std::size_t l : lefts)
        for (const std::int32_t r : edges_[l])
          if (level_right_[static_cast<std::size_t>(r)] < 0) {
            level_right_[static_cast<std::size_t>(r)] = level;
            rights.push_back(static_cast<std::size_t>(r));
            reached = reached || right_[static_cast<std::size_t>(r)] > tiny_;
          }
      lefts.clear();
      for (const std::size_t r : rights)
        for (const Edge& e : back_[r])
          if (flow_[e.left][e.index] > tiny_ && level_left_[e.left] < 0) {
            level_left_[e.left] = level + 1;
            lefts.push_back(e.left);
          }
    }
    return reached;
  }

  double push_left(std::size_t l, double amount) {
    for (std::size_t& e = next_left_[l]; e < edges_[l].size(); ++e) {
      const auto r = static_cast<std::size_t>(edges_[l][e]);
      if (level_right_[r] != level_left_[l] + 1) continue;
      const double pushed = push_right(r, amount);
      if (pushed > tiny_) {
        flow_[l][e] += pushed;
        return pushed;
      }
    }
    return 0;
  }

  double push_right(std::size_t r, double amount) {
    if (right_[r] > tiny_) {
      const double pushed = std::min(amount, right_[r]);
      right_[r] -= pushed;
      return pushed;
    }
    for (std::size_t& i = next_right_[r]; i < back_[r].size(); ++i) {
      const Edge e = back_[r][i];
      if (flow_[e.left][e.index] <= tiny_ || level_left_[e.left] != level_right_[r] + 1) continue;
      const double pushed = push_left(e.left, std::min(amount, flow_[e.left][e.index]));
      if (pushed > tiny_) {
        flow_[e.left][e.index] -= pushed;
        return pushed;
      }
    }
    return 0;
  }

  std::vector<double> left_, right_;  // what is left of the capacities
  std::vector<std::vector<std::int32_t>> edges_;
  std::vector<std::vector<Edge>> back_;
  std::vector<std::vector<double>> flow_;
  std::vector<int> level_left_, level_right_;
  std::vector<std::size_t> next_left_, next_right_;
  double tiny_ = 0;
};

}  // namespace

Hideable find_hideable(const Graph& graph, const NodeSeconds& seconds, const Phase* phase) {
  const Ancestors ancestors(find_dependence(graph));
  std::vector<NodeId> collectives, computes;
  for (std::size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    if ((phase != nullptr && node.scope.phase != *phase) || seconds[n] <= 0) continue;
    (node.op->collective ? collectives : computes).push_back(NodeId(n));
  }
  Hideable result;
  result.window.assign(graph.nodes().size(), 0.0);
  std::vector<double> left, right;
  std::vector<std::vector<std::int32_t>> edges(collectives.size());
  std::vector<char> in_window(computes.size(), 0);
  for (const NodeId c : computes) right.push_back(seconds[c.index()]);
  for (std::size_t l = 0; l < collectives.size(); ++l) {
    const NodeId c = collectives[l];
    left.push_back(seconds[c.index()]);
    result.transport_seconds += seconds[c.index()];
    for (std::size_t r = 0; r < computes.size(); ++r) {
      if (!ancestors.independent(c, computes[r])) continue;
      edges[l].push_back(static_cast<std::int32_t>(r));
      result.window[c.index()] += right[r];
      if (std::exchange(in_window[r], 1) == 0) result.any_window_seconds += right[r];
    }
  }
  result.seconds = BipartiteFlow(std::move(left), std::move(right), std::move(edges)).run();
  return result;
}

}  // namespace farskip
