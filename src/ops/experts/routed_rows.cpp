// SPDX-License-Identifier: Apache-2.0
// Routed rows on their way to the ranks that own their experts, and back.
#include "ops/collective_ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

namespace {

/// What leaves this rank when its rows are spread evenly.
double wire_bytes(const RowExchange& a, const TensorType& rows) {
  return static_cast<double>(rows.num_bytes()) * static_cast<double>(a.peers - 1) /
         static_cast<double>(a.peers);
}

MeshAxis expert_axis(const Attributes&) {
  return MeshAxis::expert;
}

void add_collectives(OpTable& table) {
  table.add({.name = "exchange_rows",
             .parse_attributes = &Attributes::parse<RowExchange>,
             .min_inputs = 2,  // rows, offsets
             .max_inputs = 2,
             .inputs = {In::compute, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const auto& a = t.get<RowExchange>();
               FARSKIP_SHAPE(t.shape(0)[0] == a.rows && t.shape(1) == Shape{a.peers * a.groups + 1},
                             "exchange_rows", t);
               return {with_rows(t.in(0), a.peers * a.max_rows),
                       {DType::i32, Shape{a.peers * a.groups}, {}},
                       {DType::i32, Shape{1}, {}}};
             },
             .gradient =
                 [](GradientCall& g) {
                   g.set(0, return_rows(g.builder(), g.dout(), g.out(1), g.in(1), g.get<RowExchange>()));
                 },
             .cost = [](const OpTypes& t) -> OpCost {
               return {.wire_bytes = wire_bytes(t.get<RowExchange>(), t.in(0))};
             },
             .collective = true,
             .axis = expert_axis});

  table.add({.name = "return_rows",
             .parse_attributes = &Attributes::parse<RowExchange>,
             .min_inputs = 3,  // slabs, counts, offsets
             .max_inputs = 3,
             .inputs = {In::compute, In::integer, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const auto& a = t.get<RowExchange>();
               FARSKIP_SHAPE(t.shape(0)[0] == a.peers * a.max_rows &&
                                 t.shape(1) == Shape{a.peers * a.groups} &&
                                 t.shape(2) == Shape{a.peers * a.groups + 1},
                             "return_rows", t);
               return {with_rows(t.in(0), a.rows)};
             },
             .gradient =
                 [](GradientCall& g) {
                   g.set(0, exchange_rows(g.builder(), g.dout(), g.in(2), g.get<RowExchange>()).slabs);
                 },
             .cost = [](const OpTypes& t) -> OpCost {
               return {.wire_bytes = wire_bytes(t.get<RowExchange>(), t.outputs[0])};
             },
             .collective = true,
             .axis = expert_axis});
}

void add_orders(OpTable& table) {
  table.add({.name = "order_by_expert",
             .parse_attributes = &Attributes::parse<RowExchange>,
             .min_inputs = 1,
             .max_inputs = 1,
             .inputs = {In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const auto& a = t.get<RowExchange>();
               FARSKIP_SHAPE(t.shape(0) == Shape{a.peers * a.groups}, "order_by_expert", t);
               return {{DType::i32, Shape{a.peers * a.max_rows}, {}},
                       {DType::i32, Shape{a.groups + 1}, {}},
                       {DType::i32, Shape{1}, {}}};
             },
             .row_counts = {{0, 2}}});

  table.add({.name = "gather_rows",
             .min_inputs = 2,  // x, source
             .max_inputs = 2,
             .inputs = {In::compute, In::integer},
             .bounded = {1},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               TensorType out = with_rows(t.in(0), t.shape(1)[0]);
               out.count = t.in(1).count;
               return {out};
             },
             .gradient =
                 [](GradientCall& g) {
                   g.set(0, scatter_rows(g.builder(), g.dout(), g.in(1), g.shape(g.in(0))[0]));
                 },
             .cost = [](const OpTypes& t) -> OpCost {
               return {.bytes = 2.0 * static_cast<double>(t.outputs[0].num_bytes())};
             },
             .cheap = true});

  table.add({.name = "scatter_rows",
             .parse_attributes = &Attributes::parse<ScatterRows>,
             .min_inputs = 2,  // y, source
             .max_inputs = 2,
             .inputs = {In::compute, In::integer},
             .bounded = {0, 1},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.shape(0)[0] == t.shape(1)[0] && t.in(0).count == t.in(1).count, "scatter_rows",
                             t);
               return {with_rows(t.in(0), t.get<ScatterRows>().rows)};
             },
             .gradient = [](GradientCall& g) { g.set(0, gather_rows(g.builder(), g.dout(), g.in(1))); },
             .cost = [](const OpTypes& t) -> OpCost {
               return {.bytes = 2.0 * static_cast<double>(t.in(0).num_bytes())};
             }});
}

}  // namespace

void register_routed_rows(OpTable& table);
void register_routed_rows(OpTable& table) {
  add_collectives(table);
  add_orders(table);
}

namespace ops {
ReceivedRows exchange_rows(Builder& b, ValueId rows, ValueId offsets, const RowExchange& attributes) {
  const auto out = b.emit("exchange_rows", attributes, {rows, offsets});
  return {out[0], out[1], out[2]};
}
ValueId return_rows(Builder& b, ValueId slabs, ValueId counts, ValueId offsets,
                    const RowExchange& attributes) {
  return b.emit("return_rows", attributes, {slabs, counts, offsets})[0];
}
ExpertOrder order_by_expert(Builder& b, ValueId counts, const RowExchange& attributes) {
  const auto out = b.emit("order_by_expert", attributes, {counts});
  return {out[0], out[1], out[2]};
}
ValueId gather_rows(Builder& b, ValueId x, ValueId source) {
  return b.emit("gather_rows", {x, source})[0];
}
ValueId scatter_rows(Builder& b, ValueId y, ValueId source, std::int64_t rows) {
  return b.emit("scatter_rows", ScatterRows{rows}, {y, source})[0];
}
}  // namespace ops
}  // namespace farskip
