// SPDX-License-Identifier: Apache-2.0
#include "farskip/ops/ops.h"
#include "farskip/ops/rules.h"

namespace farskip {

using namespace ops;

void register_elementwise(OpTable& table);
void register_elementwise(OpTable& table) {
  table.add({.name = "cast",
             .parse_attributes = &Attributes::parse<Cast>,
             .min_inputs = 1,
             .max_inputs = 1,
             .inputs = {In::any},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const DType to = t.get<Cast>().dtype == CastTo::bf16 ? DType::bf16 : DType::f32;
               FARSKIP_SHAPE(t.in(0).dtype == (to == DType::bf16 ? DType::f32 : DType::bf16), "cast", t);
               return {{to, t.shape(0), t.in(0).count}};
             },
             .gradient = [](GradientCall& g) { g.set(0, cast(g.builder(), g.dout(), g.dtype(g.in(0)))); },
             .cheap = true});

  table.add({.name = "add",
             .min_inputs = 2,
             .max_inputs = 2,
             .inputs = {In::compute},
             .bounded = {0, 1},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.in(0) == t.in(1), "add", t);
               return {like(t.in(0))};
             },
             .gradient =
                 [](GradientCall& g) {
                   g.set(0, g.dout());
                   g.set(1, g.dout());
                 },
             .cost = [](const OpTypes& t) { return flops_cost(elements(t.shape(0))); },
             .in_place = {{0, 0}, {0, 1}}});
}

namespace ops {
ValueId cast(Builder& b, ValueId x, DType dtype) {
  const DType now = b.graph.type(x).dtype;
  if (now == dtype) return x;
  FARSKIP_CHECK(dtype == DType::bf16 || dtype == DType::f32, "no cast to {}", dtype_name(dtype));
  return b.emit("cast", Cast{dtype == DType::bf16 ? CastTo::bf16 : CastTo::f32}, {x})[0];
}
ValueId add(Builder& b, ValueId x, ValueId y) {
  return b.emit("add", {x, y})[0];
}
}  // namespace ops
}  // namespace farskip
