// SPDX-License-Identifier: Apache-2.0
#include "farskip/ops/ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

void register_activation(OpTable& table);
void register_activation(OpTable& table) {
  table.add({.name = "swiglu",
             .min_inputs = 1,
             .max_inputs = 2,
             .inputs = {In::compute, In::wide},
             .bounded = {0, 1},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.shape(0)[1] % 2 == 0 && (!t.has(1) || t.shape(1) == Shape{t.shape(0)[0]}),
                             "swiglu", t);
               return {rows_like(t.in(0), t.shape(0)[1] / 2)};
             },
             .gradient =
                 [](GradientCall& g) {
                   const auto d = g.builder().emit("swiglu_grad", {g.dout(), g.in(0), g.in(1)});
                   g.set(0, d[0]);
                   if (g.in(1)) g.set(1, d[1]);
                 },
             .cost = [](const OpTypes& t) { return flops_cost(10.0 * elements(t.outputs[0].shape)); },
             .cheap = true,
             .routed = RoutedRows::by_row});

  table.add({.name = "swiglu_grad",
             .min_inputs = 2,
             .max_inputs = 3,
             .inputs = {In::compute, In::compute, In::wide},
             .bounded = {0, 1, 2},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.shape(0)[1] * 2 == t.shape(1)[1] && t.shape(0)[0] == t.shape(1)[0],
                             "swiglu_grad", t);
               std::vector<TensorType> out{like(t.in(1))};
               if (t.has(2)) out.push_back(like(t.in(2)));
               return out;
             },
             .cost = [](const OpTypes& t) { return flops_cost(20.0 * elements(t.shape(0))); },
             .in_place = {{0, 1}}});
}

namespace ops {
ValueId swiglu(Builder& b, ValueId x, ValueId row_weight) {
  return b.emit("swiglu", {x, row_weight})[0];
}
}  // namespace ops
}  // namespace farskip
