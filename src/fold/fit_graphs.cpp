// SPDX-License-Identifier: Apache-2.0
#include "farskip/fold/fit_graphs.h"

#include "farskip/ops/optimizer_ops.h"

namespace farskip {
namespace {

Builder builder_of(Graph& graph, const LayerBlock& block) {
  return {graph, {0, 0, block.layer, block.kind, Phase::forward}};
}

ValueId add_input(Graph& graph, const char* name, Shape shape) {
  return graph.add_external(ExternalKind::input, name, {DType::f32, std::move(shape), {}});
}

ValueId product(Builder& b, ValueId x, ValueId r) {
  return ops::matmul(b, x, r, {.transpose_a = true});
}

/// The weights of the rows of a fit, with either sign.
struct RowWeights {
  RowWeights(Graph& graph, std::int64_t tokens)
      : plus(add_input(graph, "row_weight", {tokens})),
        minus(add_input(graph, "negative_weight", {tokens})) {}
  ValueId difference(Builder& b, ValueId x, ValueId y) const {
    return ops::add(b, ops::scale_rows(b, x, plus), ops::scale_rows(b, y, minus));
  }
  ValueId plus, minus;
};

/// Sums over the rows of each expert.
void add_expert_sums(Graph& graph, Builder& b, const MoeConfig& moe, ValueId x, ValueId r) {
  const int layer = b.scope.layer;
  const auto bias = graph.find_external(layer_name(layer, "mlp.gate.e_score_correction_bias"));
  ops::Route shares = routing(moe);
  shares.normalize = true;
  shares.scaling = 1.0;
  const ops::RouteResult routed =
      ops::route(b, *graph.find_output("router_logits"), bias.value_or(ValueId()), shares);
  const ops::RoutedOrder order = ops::sort_by_expert(b, routed.indices, moe.num_experts);
  const auto in_order = [&](ValueId slots) {
    return ops::permute_values(b, slots, order.row_slot, order.slot_row);
  };
  const ValueId weight = add_input(graph, "slot_weight", {b.shape(routed.weights).num_elements()});
  const ValueId rows = ops::scale_rows(b, x, in_order(weight));
  const ValueId targets =
      ops::scale_rows(b, ops::dispatch_rows(b, r, order, moe.top_k), in_order(routed.weights));
  graph.add_output("gram", b.emit("grouped_matmul_wgrad", {rows, rows, order.offsets})[0]);
  graph.add_output("cross", b.emit("grouped_matmul_wgrad", {rows, targets, order.offsets})[0]);
}

}  // namespace

Graph input_fit_graph(const ModelConfig& config, const LayerBlock& block, const LowerOptions& options) {
  Graph graph;
  Builder b = builder_of(graph, block);
  const std::int64_t tokens = options.batch * options.sequence_length, hidden = config.hidden_size;
  const ValueId norm =
      graph.add_external(ExternalKind::parameter, layer_name(block.layer, norm_suffix(block.kind)),
                         {DType::f32, Shape{hidden}, {}});
  const auto normed = [&](const char* stream) {
    return ops::rms_norm(b, add_input(graph, stream, {tokens, hidden}), norm, config.rms_norm_eps);
  };
  const RowWeights weights(graph, tokens);
  const ValueId student = normed("student"), teacher = normed("teacher");
  const ValueId x = ops::scale_rows(b, student, weights.plus), r = weights.difference(b, teacher, student);
  graph.add_output("gram", product(b, x, x));
  graph.add_output("cross", product(b, x, r));
  graph.add_output("residual_squares", ops::sum_of_squares(b, {r}));
  graph.add_output("target_squares", ops::sum_of_squares(b, {ops::scale_rows(b, teacher, weights.plus)}));
  return graph;
}

Graph output_fit_graph(const ModelConfig& config, const LayerBlock& block, const LowerOptions& options) {
  Graph graph = lower_block(config, block, options);
  Builder b = builder_of(graph, block);
  const std::int64_t tokens = options.batch * options.sequence_length;
  const ValueId inner = *graph.find_output("inner"), out = *graph.find_output("out");
  const RowWeights weights(graph, tokens);
  const ValueId r = weights.difference(b, add_input(graph, "target", {tokens, config.hidden_size}), out);
  graph.add_output("residual_squares", ops::sum_of_squares(b, {r}));
  if (block.kind == SubBlock::routed) {
    add_expert_sums(graph, b, config.moe, inner, r);
    return graph;
  }
  const ValueId x = ops::scale_rows(b, inner, weights.plus);
  graph.add_output("gram", product(b, x, x));
  graph.add_output("cross", product(b, x, r));
  return graph;
}

}  // namespace farskip
