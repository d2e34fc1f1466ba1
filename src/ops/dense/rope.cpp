// SPDX-License-Identifier: Apache-2.0
#include "farskip/ops/ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

void register_rope(OpTable& table);
void register_rope(OpTable& table) {
  table.add({.name = "rope_table",
             .parse_attributes = &Attributes::parse<RopeTable>,
             .max_inputs = 1,
             .inputs = {In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const auto& a = t.get<RopeTable>();
               FARSKIP_SHAPE(a.positions > 0 && a.dim > 0 && a.dim % 2 == 0 &&
                                 (!t.has(0) || t.shape(0) == Shape{a.positions}),
                             "rope_table", t);
               return {{DType::f32, Shape{a.positions, a.dim}, {}}};
             },
             .cost = [](const OpTypes& t) { return flops_cost(20.0 * elements(t.outputs[0].shape)); }});

  table.add({.name = "attention_temperature",
             .parse_attributes = &Attributes::parse<AttentionTemperature>,
             .max_inputs = 1,
             .inputs = {In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const auto& a = t.get<AttentionTemperature>();
               FARSKIP_SHAPE(a.tokens > 0 && a.sequence_length > 0 && a.tokens % a.sequence_length == 0 &&
                                 a.floor > 0 && (!t.has(0) || t.shape(0) == Shape{a.tokens}),
                             "attention_temperature", t);
               return {{DType::f32, Shape{a.tokens}, {}}};
             },
             .cost = [](const OpTypes& t) { return flops_cost(20.0 * elements(t.outputs[0].shape)); }});

  table.add({.name = "rope",
             .parse_attributes = &Attributes::parse<Rope>,
             .min_inputs = 2,
             .max_inputs = 2,
             .inputs = {In::compute, In::wide},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const auto& a = t.get<Rope>();
               FARSKIP_SHAPE(t.shape(0)[1] % a.head_dim == 0 && a.offset + a.dim <= a.head_dim &&
                                 t.shape(1)[1] == a.dim && t.shape(0)[0] % t.shape(1)[0] == 0,
                             "rope", t);
               return {like(t.in(0))};
             },
             .gradient =
                 [](GradientCall& g) {
                   Rope inverse = g.get<Rope>();
                   inverse.inverse = !inverse.inverse;
                   if (g.needs(0)) g.set(0, rope(g.builder(), g.dout(), g.in(1), inverse));
                 },
             .cost =
                 [](const OpTypes& t) {
                   const auto& a = t.get<Rope>();
                   return flops_cost(3.0 * elements(t.shape(0)) * static_cast<double>(a.dim) /
                                     static_cast<double>(a.head_dim));
                 },
             .in_place = {{0, 0}}});
}

namespace ops {
ValueId rope_table(Builder& b, const RopeTable& attributes, ValueId positions) {
  return b.emit("rope_table", attributes, {positions})[0];
}
ValueId attention_temperature(Builder& b, const AttentionTemperature& attributes, ValueId positions) {
  return b.emit("attention_temperature", attributes, {positions})[0];
}
ValueId rope(Builder& b, ValueId x, ValueId table, const Rope& attributes) {
  return b.emit("rope", attributes, {x, table})[0];
}
}  // namespace ops
}  // namespace farskip
