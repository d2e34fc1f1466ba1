// SPDX-License-Identifier: Apache-2.0
#include "passes/chunk_experts.h"

#include <unordered_map>
#include <unordered_set>

#include "farskip/base/mesh_position.h"
#include "farskip/ops/ops.h"

namespace farskip {
namespace {

/// From a sort_by_expert to the combine_rows that reads it, in the graph's order, both included.
struct Region {
  std::vector<NodeId> nodes;
  std::unordered_set<ValueId> values;  // that they make
};

class Chunker {
 public:
  Chunker(const Graph& graph, int chunks) : graph_(graph), chunks_(chunks), copy_(graph, out_) {
    for (const External& e : graph.externals())
      if (e.kind == ExternalKind::parameter) parameters_.insert(e.value);
    find_regions();
  }

  Graph run() {
    for (std::size_t n = 0; n < graph_.nodes().size(); ++n) {
      const auto region = region_of_.find(NodeId(n));
      if (region == region_of_.end() || graph_.nodes()[n].op->name == "sort_by_expert")
        copy_.copy(NodeId(n));  // a sort of all tokens stays, for those who read its offsets
      else if (graph_.nodes()[n].op->name == "combine_rows")
        repeat(regions_.at(region->second), NodeId(n));
    }
    copy_.finish();
    return std::move(out_);
  }

 private:
  using Values = std::unordered_map<ValueId, ValueId>;

  void find_regions() {
    std::unordered_map<ValueId, NodeId> sort_of;  // of what depends on one, up to its combine_rows
    for (std::size_t n = 0; n < graph_.nodes().size(); ++n) {
      const Node& node = graph_.nodes()[n];
      NodeId sort = node.op->name == "sort_by_expert" ? NodeId(n) : NodeId();
      for (const ValueId v : node.inputs)
        if (const auto it = sort_of.find(v); v && it != sort_of.end()) sort = it->second;
      if (!sort) continue;
      Region& region = regions_[sort];
      region.nodes.emplace_back(n);
      region.values.insert(node.outputs.begin(), node.outputs.end());
      region_of_[NodeId(n)] = sort;
      if (node.op->name == "combine_rows") continue;
      for (const ValueId v : node.outputs) sort_of[v] = sort;
    }
  }

  void repeat(const Region& region, NodeId combine) {
    const Node& sort = graph_.node(region.nodes.front());
    builder_.scope = sort.scope;
    const std::vector<std::int64_t> rows = rows_of_parts(graph_.type(sort.inputs[0]).shape[0]);
    const std::vector<Values> inputs = split_inputs(region, rows);
    std::vector<ValueId> results;
    for (const Values& part : inputs) results.push_back(copy_part(region, part, combine));
    builder_.scope = graph_.node(combine).scope;
    copy_.map(graph_.node(combine).outputs[0], ops::concat_rows(builder_, std::move(results)));
  }

  std::vector<std::int64_t> rows_of_parts(std::int64_t tokens) const {
    FARSKIP_CHECK(tokens >= chunks_, "{} tokens in {} chunks", tokens, chunks_);
    std::vector<std::int64_t> rows;
    for (int i = 0; i < chunks_; ++i) rows.push_back(part_of(tokens, chunks_, i).count);
    return rows;
  }

  /// What enters the region has a row for each token and is cut, but for weights.
  std::vector<Values> split_inputs(const Region& region, const std::vector<std::int64_t>& rows) {
    std::vector<Values> parts(rows.size());
    for (const NodeId id : region.nodes)
      for (const ValueId v : graph_.node(id).inputs) {
        if (!v || region.values.contains(v) || parts[0].contains(v)) continue;
        const std::vector<ValueId> cut = parameters_.contains(v) ? std::vector<ValueId>(rows.size(), copy_(v))
                                                                 : ops::split_rows(builder_, copy_(v), rows);
        for (std::size_t i = 0; i < parts.size(); ++i) parts[i][v] = cut[i];
      }
    return parts;
  }

  ValueId copy_part(const Region& region, const Values& inputs, NodeId combine) {
    Values values = inputs;
    for (const NodeId id : region.nodes) {
      const Node& node = graph_.node(id);
      std::vector<ValueId> now;
      for (const ValueId v : node.inputs) now.push_back(v ? values.at(v) : v);
      const auto outputs = out_.add_node(*node.op, node.attributes, std::move(now), node.scope);
      for (std::size_t i = 0; i < outputs.size(); ++i) values[node.outputs[i]] = outputs[i];
    }
    return values.at(graph_.node(combine).outputs[0]);
  }

  const Graph& graph_;
  const int chunks_;
  Graph out_{graph_.ops()};
  GraphCopier copy_;
  Builder builder_{out_, {}};
  std::unordered_set<ValueId> parameters_;
  std::unordered_map<NodeId, Region> regions_;  // by their sort_by_expert
  std::unordered_map<NodeId, NodeId> region_of_;
};

}  // namespace

Graph chunk_experts(const Graph& graph, int chunks) {
  if (chunks == 1) return graph;
  return Chunker(graph, chunks).run();
}

}  // namespace farskip
