// SPDX-License-Identifier: Apache-2.0
#include "farskip/ops/ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

void register_loss(OpTable& table);
void register_loss(OpTable& table) {
  table.add({.name = "linear_cross_entropy",
             .min_inputs = 3,  // h, w, targets
             .max_inputs = 3,
             .inputs = {In::compute, In::compute, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.shape(0)[1] == t.shape(1)[1] && t.shape(0)[0] == t.shape(2)[0],
                             "linear_cross_entropy", t);
               const DType dtype = t.in(0).dtype;
               return {{wide(dtype), Shape{1}, {}}, {DType::i32, Shape{1}, {}}};
             },
             .gradient =
                 [](GradientCall& g) {
                   const auto d =
                       g.builder().emit("linear_cross_entropy_grad", {g.dout(), g.in(0), g.in(1), g.in(2)});
                   g.set(0, d[2]);
                   g.set(1, d[3]);
                 },
             .fused_gradient = "linear_cross_entropy_grad",
             .cost = [](const OpTypes& t) { return flops_cost(head_flops(t.shape(0), t.shape(1))); }});

  table.add({.name = "token_losses",
             .min_inputs = 3,  // h, w, targets
             .max_inputs = 3,
             .inputs = {In::compute, In::compute, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.shape(0)[1] == t.shape(1)[1] && t.shape(0)[0] == t.shape(2)[0], "token_losses",
                             t);
               return {{wide(t.in(0).dtype), t.shape(2), {}}};
             },
             .cost = [](const OpTypes& t) { return flops_cost(head_flops(t.shape(0), t.shape(1))); }});

  table.add(
      {.name = "linear_cross_entropy_grad",
       .min_inputs = 4,  // dloss, h, w, targets
       .max_inputs = 5,
       .inputs = {In::wide, In::compute, In::compute, In::integer},
       .infer = [](const OpTypes& t) -> std::vector<TensorType> {
         FARSKIP_SHAPE(t.shape(1)[1] == t.shape(2)[1] && t.shape(1)[0] == t.shape(3)[0],
                       "linear_cross_entropy_grad", t);
         const DType dtype = t.in(1).dtype, sums = wide(dtype);
         return {{sums, Shape{1}, {}}, {DType::i32, Shape{1}, {}}, like(t.in(1)), {sums, t.shape(2), {}}};
       },
       .cost = [](const OpTypes& t) { return flops_cost(3.0 * head_flops(t.shape(1), t.shape(2))); },
       .in_place = {{3, 4}},
       .accumulates = {{3, 4}}});
}

namespace ops {
LossResult linear_cross_entropy(Builder& b, ValueId h, ValueId w, ValueId targets) {
  const auto out = b.emit("linear_cross_entropy", {h, w, targets});
  return {out[0], out[1]};
}
ValueId token_losses(Builder& b, ValueId h, ValueId w, ValueId targets) {
  return b.emit("token_losses", {h, w, targets})[0];
}
}  // namespace ops
}  // namespace farskip
