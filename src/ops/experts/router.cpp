// SPDX-License-Identifier: Apache-2.0
#include "farskip/ops/ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

void register_router(OpTable& table);
void register_router(OpTable& table) {
  table.add({.name = "route",
             .parse_attributes = &Attributes::parse<Route>,
             .min_inputs = 1,
             .max_inputs = 2,
             .inputs = {In::wide},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const auto& a = t.get<Route>();
               const std::int64_t experts = t.shape(0)[1];
               FARSKIP_SHAPE(a.num_groups > 0 && experts % a.num_groups == 0 &&
                                 a.top_k <= experts / a.num_groups * a.top_groups && a.top_k > 0 &&
                                 (!a.by_logits || (a.num_groups == 1 && !t.has(1))),
                             "route", t);
               return {rows_like(t.in(0), a.top_k, DType::i32), rows_like(t.in(0), a.top_k), like(t.in(0))};
             },
             .gradient =
                 [](GradientCall& g) {
                   g.set(0, g.builder().emit("route_grad", g.get<Route>(),
                                             {g.dout(1), g.dout(2), g.out(2), g.out(0)})[0]);
                 },
             .cost = [](const OpTypes& t) { return flops_cost(20.0 * elements(t.shape(0))); }});

  table.add({.name = "route_grad",
             .parse_attributes = &Attributes::parse<Route>,
             .min_inputs = 2,  // either gradient may be absent
             .max_inputs = 4,
             .inputs = {In::wide, In::wide, In::wide, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> { return {like(t.in(2))}; },
             .cost = [](const OpTypes& t) { return flops_cost(10.0 * elements(t.shape(2))); },
             .in_place = {{0, 1}}});
}

namespace ops {
RouteResult route(Builder& b, ValueId logits, ValueId selection_bias, const Route& attributes) {
  const auto out = b.emit("route", attributes, {logits, selection_bias});
  return {out[0], out[1], out[2]};
}
}  // namespace ops
}  // namespace farskip
