// SPDX-License-Identifier: Apache-2.0
#include "fold/fit_graphs.h"

#include "farskip/ops/optimizer_ops.h"

namespace farskip {
namespace {

Builder builder_of(Graph& graph, const LayerBlock& block) {
  return {graph, {0, 0, block.layer, block.kind, Phase::forward}};
}

ValueId add_input(Graph& graph, const char* name, Shape shape) {
  return graph.add_external(ExternalKind::input, name, {DType::f32, std::move(shape), {}});
}

/// A state that the node which sums into it reads last.
ValueId add_sum(Graph& graph, const char* name, Shape shape) {
  return graph.add_external(ExternalKind::state, name, {DType::f32, std::move(shape), {}});
}

/// XᵀX and XᵀR over all rows.
void add_sums(Graph& graph, Builder& b, ValueId x, ValueId r) {
  const auto add = [&](const char* name, ValueId y) {
    const ValueId sum = add_sum(graph, name, {b.shape(x)[1], b.shape(y)[1]});
    graph.add_update(sum, b.emit("matmul", ops::Matmul{.transpose_a = true}, {x, y, sum})[0]);
  };
  add("gram", x);
  add("cross", r);
}

/// 1 for the tokens that count and 0 for others, with either sign.
struct RowMask {
  RowMask(Graph& graph, std::int64_t tokens)
      : plus(add_input(graph, "row_mask", {tokens})), minus(add_input(graph, "negative_mask", {tokens})) {}
  ValueId difference(Builder& b, ValueId x, ValueId y) const {
    return ops::add(b, ops::scale_rows(b, x, plus), ops::scale_rows(b, y, minus));
  }
  ValueId plus, minus;
};

/// Streams that a fit brings together, and by what their tokens are divided.
struct StreamPair {
  StreamPair(Graph& graph, Builder& b, Shape shape)  // a copy: the graph grows
      : mask(graph, shape[0]),
        teacher(add_input(graph, "teacher", shape)),
        student(add_input(graph, "student", shape)) {
    constexpr double tiny = 1e-30;  // of a stream that is zero
    inverse_size = b.emit("rms_norm", ops::RmsNorm{tiny}, {teacher, ops::ones(b, shape[1])})[1];
  }
  RowMask mask;
  ValueId teacher, student, inverse_size;
};

/// Sums over the rows of each expert.
void add_expert_sums(Graph& graph, Builder& b, const MoeConfig& moe, ValueId x, ValueId r, ValueId weight) {
  const int layer = b.scope.layer;
  const auto bias = graph.find_external(layer_name(layer, "mlp.gate.e_score_correction_bias"));
  ops::Route shares = routing(moe);
  shares.normalize = true;
  shares.scaling = 1.0;
  const ops::RouteResult routed =
      ops::route(b, *graph.find_output("router_logits"), bias.value_or(ValueId()), shares);
  const ops::RoutedOrder order = ops::sort_by_expert(b, routed.indices, moe.num_experts);
  const auto of_rows = [&](ValueId tokens) { return ops::dispatch_rows(b, tokens, order, moe.top_k); };
  const ValueId share = ops::permute_values(b, routed.weights, order.row_slot, order.slot_row);
  const ValueId rows = ops::scale_rows(b, x, of_rows(weight)),
                targets = ops::scale_rows(b, of_rows(r), share);
  const auto add = [&](const char* name, ValueId y) {
    const ValueId sum = add_sum(graph, name, {moe.num_experts, b.shape(x)[1], b.shape(y)[1]});
    graph.add_update(sum, b.emit("grouped_matmul_wgrad", {rows, y, order.offsets, sum})[0]);
  };
  add("gram", rows);
  add("cross", targets);
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
  const RowMask mask(graph, tokens);
  const ValueId student = normed("student"), teacher = normed("teacher");
  const ValueId x = ops::scale_rows(b, student, mask.plus), r = mask.difference(b, teacher, student);
  add_sums(graph, b, x, r);
  graph.add_output("residual_squares", ops::sum_of_squares(b, {r}));
  graph.add_output("target_squares", ops::sum_of_squares(b, {ops::scale_rows(b, teacher, mask.plus)}));
  return graph;
}

Graph output_fit_graph(const ModelConfig& config, const LayerBlock& block, const LowerOptions& options) {
  Graph graph = lower_block(config, block, options);
  Builder b = builder_of(graph, block);
  const ValueId inner = *graph.find_output("inner"), out = *graph.find_output("out");
  const StreamPair streams(graph, b, b.shape(out));
  const ValueId missing = ops::add(b, streams.mask.difference(b, streams.teacher, streams.student),
                                   ops::scale_rows(b, out, streams.mask.minus));
  const ValueId r = ops::scale_rows(b, missing, streams.inverse_size);
  graph.add_output("residual_squares", ops::sum_of_squares(b, {r}));
  const ValueId weight = ops::scale_rows(b, streams.inverse_size, streams.mask.plus);
  if (block.kind == SubBlock::routed)
    add_expert_sums(graph, b, config.moe, inner, r, weight);
  else
    add_sums(graph, b, ops::scale_rows(b, inner, weight), r);
  return graph;
}

Graph stream_error_graph(const ModelConfig& config, const LowerOptions& options) {
  Graph graph;
  Builder b{graph, {0, 0, -1, SubBlock::none, Phase::forward}};
  const StreamPair streams(graph, b, {options.batch * options.sequence_length, config.hidden_size});
  const ValueId missing = streams.mask.difference(b, streams.teacher, streams.student);
  const ValueId r = ops::scale_rows(b, missing, streams.inverse_size);
  graph.add_output("residual_squares", ops::sum_of_squares(b, {r}));
  return graph;
}

}  // namespace farskip
