// SPDX-License-Identifier: Apache-2.0
#include "passes/shard_experts.h"

#include <map>
#include <unordered_map>

#include "ops/collective_ops.h"

namespace farskip {
namespace {

class Sharder {
 public:
  Sharder(const Graph& graph, const ExpertSharding& sharding)
      : graph_(graph), sharding_(sharding), out_(graph.ops()), copy_(graph, out_, local_weights()) {}

  Graph run() {
    for (std::size_t n = 0; n < graph_.nodes().size(); ++n) {
      const Node& node = graph_.nodes()[n];
      builder_.scope = node.scope;
      if (node.op->routed == RoutedRows::by_expert)
        run_by_expert(node);
      else if (node.op->routed == RoutedRows::by_row && travelling(node) != nullptr)
        run_by_row(node, *travelling(node));
      else
        run_anywhere(NodeId(n));
    }
    for (const Output& o : graph_.outputs()) bring_back(o.value);
    copy_.finish();
    std::map<std::int32_t, int> routes;
    for (const auto& [layer, overflow] : overflows_) {
      const int number = routes[layer]++;
      out_.add_output(number == 0 ? fmt::format("row_overflow.{}", layer)
                                  : fmt::format("row_overflow.{}.{}", layer, number),
                      overflow);
    }
    return std::move(out_);
  }

 private:
  /// How the rows behind one `offsets` value travel.
  struct Route {
    ValueId offsets, counts;  // in the new graph
    ops::ExpertOrder order;
    ops::RowExchange attributes;
  };
  struct AtExperts {
    ValueId value;  // in the new graph
    const Route* route = nullptr;
  };

  std::unordered_map<ValueId, TensorType> local_weights() const {
    std::unordered_map<ValueId, TensorType> types;
    for (const Node& node : graph_.nodes()) {
      if (node.op->routed != RoutedRows::by_expert) continue;
      TensorType type = graph_.type(node.inputs[1]);
      FARSKIP_CHECK(!graph_.value(node.inputs[1]).producer, "the weights of {} are computed", node.op->name);
      FARSKIP_CHECK(type.shape[0] % sharding_.peers == 0, "{} experts on {} ranks", type.shape[0],
                    sharding_.peers);
      std::vector<std::int64_t> dims = type.shape.dims();
      dims[0] /= sharding_.peers;
      type.shape = Shape(std::move(dims));
      types.emplace(node.inputs[1], std::move(type));
    }
    return types;
  }

  /// The route of the first input that is where the experts are.
  const Route* travelling(const Node& node) const {
    for (const ValueId v : node.inputs)
      if (const auto it = at_experts_.find(v); v && it != at_experts_.end()) return it->second.route;
    return nullptr;
  }

  const Route& route_of(ValueId offsets, ValueId rows) {
    const auto [it, is_new] = routes_.try_emplace(offsets);
    Route& route = it->second;
    if (!is_new) return route;
    route.offsets = copy_(offsets);
    const std::int64_t experts = graph_.type(offsets).shape[0] - 1;
    route.attributes = {.peers = sharding_.peers,
                        .groups = experts / sharding_.peers,
                        .max_rows = sharding_.most_of(graph_.type(rows).shape[0]),
                        .rows = graph_.type(rows).shape[0]};
    const ops::ReceivedRows received =
        ops::exchange_rows(builder_, copy_(rows), route.offsets, route.attributes);
    route.counts = received.counts;
    route.order = ops::order_by_expert(builder_, received.counts, route.attributes);
    at_experts_[rows] = {ops::gather_rows(builder_, received.slabs, route.order.source), &route};
    overflows_.emplace_back(builder_.scope.layer, received.overflow);
    return route;
  }

  /// The op that makes these rows row by row, if one does: it can as well run where they go.
  const Node* row_op(ValueId rows) const {
    const NodeId maker = graph_.value(rows).producer;
    return maker && graph_.node(maker).op->routed == RoutedRows::by_row ? &graph_.node(maker) : nullptr;
  }

  /// What travels is what row by row ops read, so that rows leave as dispatch_rows gives them, however they
  /// are scaled.
  ValueId send(ValueId rows, const Route& route) {
    AtExperts& there = at_experts_[rows];
    if (there.value) return there.value;
    if (const Node* const op = row_op(rows)) {
      run_by_row(*op, route);
      return there.value;
    }
    const ValueId slabs = ops::exchange_rows(builder_, copy_(rows), route.offsets, route.attributes).slabs;
    there = {ops::gather_rows(builder_, slabs, route.order.source), &route};
    return there.value;
  }

  void bring_back(ValueId v) {
    if (copy_.has(v)) return;
    const AtExperts& there = at_experts_.at(v);
    const Route& route = *there.route;
    const ValueId slabs = ops::scatter_rows(builder_, there.value, route.order.source,
                                            route.attributes.peers * route.attributes.max_rows);
    copy_.map(v, ops::return_rows(builder_, slabs, route.counts, route.offsets, route.attributes));
  }

  void run_by_expert(const Node& node) {
    ValueId source = node.inputs[0];
    while (const Node* const op = row_op(source)) source = op->inputs[0];
    const Route& route = route_of(node.inputs[2], source);
    const ValueId rows = send(node.inputs[0], route);
    emit(node, {rows, copy_(node.inputs[1]), route.order.offsets}, route);
  }

  void run_by_row(const Node& node, const Route& route) {
    std::vector<ValueId> inputs;
    for (const ValueId v : node.inputs) inputs.push_back(v ? send(v, route) : v);
    emit(node, std::move(inputs), route);
  }

  void emit(const Node& node, std::vector<ValueId> inputs, const Route& route) {
    const auto outputs = out_.add_node(*node.op, node.attributes, std::move(inputs), node.scope);
    for (std::size_t i = 0; i < outputs.size(); ++i) at_experts_[node.outputs[i]] = {outputs[i], &route};
  }

  void run_anywhere(NodeId id) {
    for (const ValueId v : graph_.node(id).inputs)
      if (v) bring_back(v);
    copy_.copy(id);
  }

  const Graph& graph_;
  const ExpertSharding sharding_;
  Graph out_;
  GraphCopier copy_;
  Builder builder_{out_, {}};
  std::unordered_map<ValueId, Route> routes_;  // by old offsets; nodes of the map do not move
  std::unordered_map<ValueId, AtExperts> at_experts_;
  std::vector<std::pair<std::int32_t, ValueId>> overflows_;
};

}  // namespace

std::int64_t ExpertSharding::most_of(std::int64_t routed) const {
  return rows == 0 ? max_rows : (max_rows * routed + rows - 1) / rows;
}

Graph shard_experts(const Graph& graph, const ExpertSharding& sharding) {
  if (sharding.peers == 1) return graph;
  return Sharder(graph, sharding).run();
}

}  // namespace farskip
