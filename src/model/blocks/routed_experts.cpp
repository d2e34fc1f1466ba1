// SPDX-License-Identifier: Apache-2.0
// Experts of which a router chooses a few for each token. All of a layer are one tensor, gate and up one
// matrix.

#include "model/blocks/block.h"

namespace farskip {
namespace {

constexpr std::string_view kRouter = "mlp.gate.weight", kSelectionBias = "mlp.gate.e_score_correction_bias",
                           kGateUp = "mlp.experts.gate_up_proj", kDown = "mlp.experts.down_proj";

class RoutedExperts : public Block {
 public:
  explicit RoutedExperts(const ModelConfig& c) : c_(c), moe_(c.moe) {}
  void list(ParameterList& list) const override;
  ValueId lower(Lowering& to, ValueId h) const override;
  std::vector<std::string> readers() const override { return {std::string(kRouter), std::string(kGateUp)}; }
  std::string writer() const override { return std::string(kDown); }

 private:
  /// Without pieces.
  ParameterSpec& list_experts(ParameterList& list, std::string_view name, Shape shape, std::int64_t rows,
                              Cut cut) const;

  const ModelConfig& c_;
  const MoeConfig& moe_;
};

ParameterSpec& RoutedExperts::list_experts(ParameterList& list, std::string_view name, Shape shape,
                                           std::int64_t rows, Cut cut) const {
  ParameterSpec& spec = list.add(name, std::move(shape));
  spec.is_expert = true;
  spec.layout = {{.dim = 0, .axis = MeshAxis::expert}, cut};
  spec.matrix_rows = rows;
  spec.pieces.clear();
  if (list.mlp_names().packed_transposed)
    spec.packed_transposed =
        list.full_name(fmt::format("{}{}", list.mlp_names().module, name.substr(name.find('.'))));
  return spec;
}

void RoutedExperts::list(ParameterList& list) const {
  const MlpNames& names = list.mlp_names();
  ParameterSpec& router = list.add(kRouter, {moe_.num_experts, c_.hidden_size});
  router.is_router = true;
  router.pieces[0].name = list.full_name(fmt::format("{}.{}.weight", names.module, names.router));
  if (moe_.selection_bias)
    list.add(kSelectionBias, {moe_.num_experts}, Initializer::zeros).is_trained = false;
  const std::int64_t experts = moe_.num_experts, size = moe_.expert_size, hidden = c_.hidden_size;
  const auto expert_name = [&](std::int64_t expert, std::string_view part) {
    return list.full_name(fmt::format("{}.experts.{}.{}.weight", names.module, expert, part));
  };
  ParameterSpec& gate_up =
      list_experts(list, kGateUp, {experts, 2 * size, hidden}, size, {.dim = 1, .groups = 2});
  for (std::int64_t e = 0; e < experts; ++e) {
    gate_up.pieces.push_back({expert_name(e, names.gate), {size, hidden}, e * 2 * size});
    gate_up.pieces.push_back({expert_name(e, names.up), {size, hidden}, e * 2 * size + size});
  }
  ParameterSpec& down = list_experts(list, kDown, {experts, hidden, size}, hidden, {.dim = 2});
  for (std::int64_t e = 0; e < experts; ++e)
    down.pieces.push_back({expert_name(e, names.down), {hidden, size}, e * hidden});
}

ValueId RoutedExperts::lower(Lowering& to, ValueId h) const {
  Builder b = to.builder();
  const ValueId logits =
      ops::linear(b, ops::cast(b, h, wide(to.options().dtype)), to.layer_parameter(kRouter));
  const ValueId bias = moe_.selection_bias ? to.layer_parameter(kSelectionBias) : ValueId();
  const ops::RouteResult routed = ops::route(b, logits, bias, routing(moe_));
  to.add_balance_loss(routed, moe_.score == ops::ScoreFunction::sigmoid);
  if (to.options().head == HeadOutput::hidden) {
    to.add_layer_output("router_logits", logits);
    to.add_layer_output("router_choice", routed.indices);
  }
  ops::RoutedOrder order = ops::sort_by_expert(b, routed.indices, moe_.num_experts);
  to.add_layer_output("expert_offsets", order.offsets);
  if (to.has_whole_experts()) {
    const Range own = to.own_experts(moe_.num_experts);
    order = ops::own_experts(b, order, {.first = own.first, .count = own.count});
  }
  // A weight of what experts give multiplies inside the expert, before its down-projection, so that its
  // gradient needs no saved [R, H] tensor.
  ValueId weight = ops::permute_values(b, to.for_parts(routed.weights), order.row_slot, order.slot_row);
  ValueId rows = ops::dispatch_rows(b, to.for_parts(h), order, moe_.top_k);
  if (moe_.scales_input) {
    rows = ops::scale_rows(b, rows, weight);
    weight = {};
  }
  const ValueId gate_up = ops::grouped_matmul(b, rows, to.layer_parameter(kGateUp), order.offsets);
  const ValueId inner = ops::swiglu(b, gate_up, weight);
  to.show("inner", inner);
  to.show("router_logits", logits);
  const ValueId out = ops::grouped_matmul(b, inner, to.layer_parameter(kDown), order.offsets);
  return to.sum_of_parts(ops::combine_rows(b, out, order, moe_.top_k));
}

}  // namespace

std::unique_ptr<Block> make_routed_experts(const ModelConfig& config) {
  return std::make_unique<RoutedExperts>(config);
}

}  // namespace farskip
