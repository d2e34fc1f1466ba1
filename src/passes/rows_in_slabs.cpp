// SPDX-License-Identifier: Apache-2.0
#include "passes/rows_in_slabs.h"

#include <algorithm>
#include <unordered_map>

#include "ops/collective_ops.h"

namespace farskip {
namespace {

class SlabRewriter {
 public:
  explicit SlabRewriter(const Graph& graph) : graph_(graph), out_(graph.ops()), copy_(graph, out_) {}

  Graph run() {
    for (std::size_t n = 0; n < graph_.nodes().size(); ++n) {
      const Node& node = graph_.nodes()[n];
      builder_.scope = node.scope;
      if (node.op->name == "exchange_rows")
        exchange(node);
      else if (node.op->name == "return_rows")
        give_back(node);
      else if (!take(node))
        copy_.copy(NodeId(n));
    }
    copy_.finish();
    return std::move(out_);
  }

 private:
  /// How the rows behind one `offsets` value are laid out.
  struct Route {
    ops::SlabPlaces places;  // in the new graph
    ops::RowExchange attributes;
    std::int64_t num_slab_rows() const { return attributes.peers * attributes.max_rows; }
  };
  struct Returned {
    ValueId slabs;  // in the new graph
    const Route* route = nullptr;
  };

  const Node& producer(ValueId value, const char* what) const {
    const NodeId id = graph_.value(value).producer;
    FARSKIP_CHECK(id, "{} are not computed", what);
    return graph_.node(id);
  }

  const Route& route_of(ValueId offsets, const ops::RowExchange& attributes) {
    const auto [it, is_new] = routes_.try_emplace(offsets);
    Route& route = it->second;
    if (!is_new) return route;
    const Node& order = producer(offsets, "offsets of routed rows");
    FARSKIP_CHECK(order.op->name == "sort_by_expert", "offsets of routed rows come from {}", order.op->name);
    route.attributes = attributes;
    route.places = ops::slab_places(builder_, copy_(order.outputs[1]), copy_(offsets), attributes);
    return route;
  }

  ops::SlabRows slab_rows(const Node& node, const Route& route) const {
    if (node.op->name == "permute_values")
      return {.top_k = 0,
              .rows = route.num_slab_rows(),
              .columns = node.attributes.get<ops::PermuteValues>().columns};
    return {.top_k = node.attributes.get<ops::TopK>().top_k, .rows = route.num_slab_rows()};
  }

  void exchange(const Node& node) {
    const Route& route = route_of(node.inputs[1], node.attributes.get<ops::RowExchange>());
    const Node& maker = producer(node.inputs[0], "routed rows");
    FARSKIP_CHECK(maker.op->name == "dispatch_rows" || maker.op->name == "permute_values",
                  "routed rows come from {}", maker.op->name);
    const ValueId slabs =
        ops::put_into_slabs(builder_, copy_(maker.inputs[0]), route.places.places, slab_rows(maker, route));
    const ops::MovedSlabs moved = ops::exchange_slabs(builder_, slabs, route.places.counts, route.attributes);
    copy_.map(node.outputs[0], moved.slabs);
    copy_.map(node.outputs[1], moved.counts);
    copy_.map(node.outputs[2], route.places.overflow);
  }

  void give_back(const Node& node) {
    const Route& route = route_of(node.inputs[2], node.attributes.get<ops::RowExchange>());
    returned_[node.outputs[0]] = {ops::return_slabs(builder_, copy_(node.inputs[0]), route.attributes),
                                  &route};
  }

  /// Whether the node reads rows that have come back.
  bool take(const Node& node) {
    const auto reads = [&](ValueId v) { return v && returned_.contains(v); };
    if (std::none_of(node.inputs.begin(), node.inputs.end(), reads)) return false;
    FARSKIP_CHECK(
        reads(node.inputs[0]) && (node.op->name == "combine_rows" || node.op->name == "permute_values"),
        "{} reads routed rows that have come back", node.op->name);
    const Returned& returned = returned_.at(node.inputs[0]);
    copy_.map(node.outputs[0], ops::take_from_slabs(builder_, returned.slabs, returned.route->places.places,
                                                    slab_rows(node, *returned.route)));
    return true;
  }

  const Graph& graph_;
  Graph out_;
  GraphCopier copy_;
  Builder builder_{out_, {}};
  std::unordered_map<ValueId, Route> routes_;  // by old offsets; nodes of the map do not move
  std::unordered_map<ValueId, Returned> returned_;
};

}  // namespace

Graph rows_in_slabs(const Graph& graph) {
  return SlabRewriter(graph).run();
}

}  // namespace farskip
