// SPDX-License-Identifier: Apache-2.0
#include "farskip/ops/ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

namespace {

void add_clamp(OpTable& table) {
  table.add({.name = "clamp",
             .parse_attributes = &Attributes::parse<Clamp>,
             .min_inputs = 1,
             .max_inputs = 1,
             .inputs = {In::compute},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> { return {like(t.in(0))}; },
             .gradient =
                 [](GradientCall& g) {
                   g.set(0, g.builder().emit("clamp_grad", g.get<Clamp>(), {g.dout(), g.in(0)})[0]);
                 },
             .cost = [](const OpTypes& t) { return flops_cost(2.0 * elements(t.shape(0))); },
             .cheap = true,
             .in_place = {{0, 0}}});

  table.add({.name = "clamp_grad",
             .parse_attributes = &Attributes::parse<Clamp>,
             .min_inputs = 2,
             .max_inputs = 2,
             .inputs = {In::compute},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.in(0) == t.in(1), "clamp_grad", t);
               return {like(t.in(0))};
             },
             .cost = [](const OpTypes& t) { return flops_cost(2.0 * elements(t.shape(0))); },
             .in_place = {{0, 0}}});
}

void add_scale_rows(OpTable& table) {
  table.add({.name = "ones",
             .parse_attributes = &Attributes::parse<Ones>,
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.get<Ones>().size > 0, "ones", t);
               return {{DType::f32, Shape{t.get<Ones>().size}, {}}};
             }});

  table.add({.name = "scale_rows",
             .min_inputs = 2,
             .max_inputs = 2,
             .inputs = {In::compute, In::wide},
             .bounded = {0, 1},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.shape(0).rank() == 2 && t.shape(1)[0] == t.shape(0)[0] &&
                                 t.shape(1).num_elements() == t.shape(0)[0],
                             "scale_rows", t);
               return {like(t.in(0))};
             },
             .gradient =
                 [](GradientCall& g) {
                   const auto d = g.builder().emit("scale_rows_grad", {g.dout(), g.in(0), g.in(1)});
                   g.set(0, d[0]);
                   g.set(1, d[1]);
                 },
             .cost = [](const OpTypes& t) { return flops_cost(elements(t.shape(0))); },
             .cheap = true,
             .in_place = {{0, 0}},
             .routed = RoutedRows::by_row});

  table.add({.name = "scale_rows_grad",
             .min_inputs = 3,
             .max_inputs = 3,
             .inputs = {In::compute, In::compute, In::wide},
             .bounded = {0, 1, 2},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.in(0) == t.in(1), "scale_rows_grad", t);
               return {like(t.in(0)), like(t.in(2))};
             },
             .cost = [](const OpTypes& t) { return flops_cost(3.0 * elements(t.shape(0))); },
             .in_place = {{0, 0}}});
}

void add_bias_ops(OpTable& table) {
  table.add({.name = "add_bias",
             .min_inputs = 2,
             .max_inputs = 2,
             .inputs = {In::compute, In::wide},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.shape(0).rank() == 2 && t.shape(1) == Shape{t.shape(0)[1]}, "add_bias", t);
               return {like(t.in(0))};
             },
             .gradient =
                 [](GradientCall& g) {
                   g.set(0, g.dout());
                   if (g.needs(1)) g.set(1, g.builder().emit("add_bias_grad", {g.dout()})[0]);
                 },
             .cost = [](const OpTypes& t) { return flops_cost(elements(t.shape(0))); },
             .cheap = true,
             .in_place = {{0, 0}}});

  table.add({.name = "add_bias_grad",
             .min_inputs = 1,
             .max_inputs = 2,
             .inputs = {In::compute},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.shape(0).rank() == 2, "add_bias_grad", t);
               return {{wide(t.in(0).dtype), Shape{t.shape(0)[1]}, {}}};
             },
             .cost = [](const OpTypes& t) { return flops_cost(elements(t.shape(0))); },
             .in_place = {{0, 1}},
             .accumulates = {{0, 1}}});
}

void add_sigmoid_gate(OpTable& table) {
  table.add({.name = "sigmoid_gate",
             .min_inputs = 2,
             .max_inputs = 2,
             .inputs = {In::compute},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.in(0) == t.in(1), "sigmoid_gate", t);
               return {like(t.in(0))};
             },
             .gradient =
                 [](GradientCall& g) {
                   const auto d = g.builder().emit("sigmoid_gate_grad", {g.dout(), g.in(0), g.in(1)});
                   g.set(0, d[0]);
                   g.set(1, d[1]);
                 },
             .cost = [](const OpTypes& t) { return flops_cost(10.0 * elements(t.shape(0))); },
             .cheap = true,
             .in_place = {{0, 0}}});

  table.add({.name = "sigmoid_gate_grad",
             .min_inputs = 3,
             .max_inputs = 3,
             .inputs = {In::compute},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.in(0) == t.in(1) && t.in(0) == t.in(2), "sigmoid_gate_grad", t);
               return {like(t.in(0)), like(t.in(0))};
             },
             .cost = [](const OpTypes& t) { return flops_cost(12.0 * elements(t.shape(0))); },
             .in_place = {{0, 0}, {1, 2}}});
}

}  // namespace

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
  add_clamp(table);
  add_scale_rows(table);
  add_bias_ops(table);
  add_sigmoid_gate(table);
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
ValueId clamp(Builder& b, ValueId x, double limit) {
  return b.emit("clamp", Clamp{limit}, {x})[0];
}
ValueId ones(Builder& b, std::int64_t size) {
  return b.emit("ones", Ones{size}, {})[0];
}
ValueId scale_rows(Builder& b, ValueId x, ValueId scale) {
  return b.emit("scale_rows", {x, scale})[0];
}
ValueId add_bias(Builder& b, ValueId x, ValueId bias) {
  return b.emit("add_bias", {x, bias})[0];
}
ValueId sigmoid_gate(Builder& b, ValueId x, ValueId gate) {
  return b.emit("sigmoid_gate", {x, gate})[0];
}
}  // namespace ops
}  // namespace farskip
