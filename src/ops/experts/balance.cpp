// SPDX-License-Identifier: Apache-2.0
#include "farskip/ops/ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

void register_balance(OpTable& table);
void register_balance(OpTable& table) {
  table.add({.name = "balance_loss",
             .parse_attributes = &Attributes::parse<BalanceLoss>,
             .min_inputs = 2,
             .max_inputs = 2,
             .inputs = {In::wide, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.shape(0)[0] == t.shape(1)[0] &&
                                 t.shape(0)[0] % t.get<BalanceLoss>().sequence_length == 0,
                             "balance_loss", t);
               return {{t.in(0).dtype, Shape{1}, {}}};
             },
             .gradient =
                 [](GradientCall& g) {
                   g.set(0, g.builder().emit("balance_loss_grad", g.get<BalanceLoss>(),
                                             {g.dout(), g.in(0), g.in(1)})[0]);
                 },
             .cost = [](const OpTypes& t) { return flops_cost(2.0 * elements(t.shape(0))); }});

  table.add({.name = "balance_loss_grad",
             .parse_attributes = &Attributes::parse<BalanceLoss>,
             .min_inputs = 3,
             .max_inputs = 3,
             .inputs = {In::wide, In::wide, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> { return {like(t.in(1))}; },
             .cost = [](const OpTypes& t) { return flops_cost(4.0 * elements(t.shape(1))); }});
}

namespace ops {
ValueId balance_loss(Builder& b, ValueId scores, ValueId indices, const BalanceLoss& attributes) {
  return b.emit("balance_loss", attributes, {scores, indices})[0];
}
}  // namespace ops
}  // namespace farskip
