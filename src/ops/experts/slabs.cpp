// SPDX-License-Identifier: Apache-2.0
// Routed rows in slabs, one for each peer: what travels between GPUs.
#include "ops/collective_ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

namespace {

/// Of the rows that are there, when they are spread evenly: `max_rows` only bounds them.
OpCost transport_cost(const OpTypes& t) {
  const auto& a = t.get<RowExchange>();
  const auto bytes =
      static_cast<double>(row_size(t.shape(0))) * static_cast<double>(dtype_size(t.in(0).dtype));
  return {.wire_bytes = bytes * static_cast<double>(a.rows * (a.peers - 1)) / static_cast<double>(a.peers)};
}

void add_transports(OpTable& table) {
  const auto expert_axis = [](const Attributes&) { return MeshAxis::expert; };
  table.add({.name = "exchange_slabs",
             .parse_attributes = &Attributes::parse<RowExchange>,
             .min_inputs = 2,  // slabs, counts
             .max_inputs = 2,
             .inputs = {In::compute, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const auto& a = t.get<RowExchange>();
               FARSKIP_SHAPE(t.shape(0)[0] == a.peers * a.max_rows && t.shape(1) == Shape{a.peers * a.groups},
                             "exchange_slabs", t);
               return {t.in(0), t.in(1)};
             },
             .cost = transport_cost,
             .collective = true,
             .axis = expert_axis});
  table.add({.name = "return_slabs",
             .parse_attributes = &Attributes::parse<RowExchange>,
             .min_inputs = 1,
             .max_inputs = 1,
             .inputs = {In::compute},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const auto& a = t.get<RowExchange>();
               FARSKIP_SHAPE(t.shape(0)[0] == a.peers * a.max_rows, "return_slabs", t);
               return {t.in(0)};
             },
             .cost = transport_cost,
             .collective = true,
             .axis = expert_axis});
}

void add_moves(OpTable& table) {
  table.add({.name = "put_into_slabs",
             .parse_attributes = &Attributes::parse<SlabRows>,
             .min_inputs = 2,  // x, places
             .max_inputs = 2,
             .inputs = {In::compute, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const auto& a = t.get<SlabRows>();
               const std::int64_t slots = t.shape(1)[0];
               FARSKIP_SHAPE(slots == (a.top_k > 0 ? t.shape(0)[0] * a.top_k : t.shape(0).num_elements()),
                             "put_into_slabs", t);
               if (a.top_k == 0) return {{t.in(0).dtype, Shape{a.rows}, {}}};
               return {with_rows(t.in(0), a.rows)};
             },
             .gradient =
                 [](GradientCall& g) {
                   SlabRows back = g.get<SlabRows>();
                   const Shape& shape = g.shape(g.in(0));
                   if (back.top_k == 0 && shape.rank() > 1) back.columns = shape.back();
                   g.set(0, take_from_slabs(g.builder(), g.dout(), g.in(1), back));
                 },
             .cost = [](const OpTypes& t) -> OpCost {
               return {.bytes = 2.0 * static_cast<double>(t.shape(1)[0] * row_size(t.outputs[0].shape)) *
                                static_cast<double>(dtype_size(t.in(0).dtype))};
             },
             .cheap = true});
  table.add(
      {.name = "take_from_slabs",
       .parse_attributes = &Attributes::parse<SlabRows>,
       .min_inputs = 2,  // slabs, places
       .max_inputs = 2,
       .inputs = {In::compute, In::integer},
       .infer = [](const OpTypes& t) -> std::vector<TensorType> {
         const auto& a = t.get<SlabRows>();
         const std::int64_t slots = t.shape(1)[0];
         FARSKIP_SHAPE(t.shape(0)[0] == a.rows && (a.top_k > 0 || t.shape(0).rank() == 1), "take_from_slabs",
                       t);
         if (a.top_k > 0) return {with_rows(t.in(0), slots / a.top_k)};
         return {{t.in(0).dtype, a.columns == 0 ? Shape{slots} : Shape{slots / a.columns, a.columns}, {}}};
       },
       .gradient =
           [](GradientCall& g) {
             g.set(0, put_into_slabs(g.builder(), g.dout(), g.in(1), g.get<SlabRows>()));
           },
       .cost =
           [](const OpTypes& t) {
             return flops_cost(static_cast<double>(t.shape(1)[0] * row_size(t.shape(0))));
           }});
  table.add({.name = "slab_places",
             .parse_attributes = &Attributes::parse<RowExchange>,
             .min_inputs = 2,  // slot_row, offsets
             .max_inputs = 2,
             .inputs = {In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const auto& a = t.get<RowExchange>();
               FARSKIP_SHAPE(t.shape(0) == Shape{a.rows} && t.shape(1) == Shape{a.peers * a.groups + 1},
                             "slab_places", t);
               return {t.in(0), {DType::i32, Shape{a.peers * a.groups}, {}}, {DType::i32, Shape{1}, {}}};
             }});
}

}  // namespace

void register_slabs(OpTable& table);
void register_slabs(OpTable& table) {
  add_transports(table);
  add_moves(table);
}

namespace ops {
SlabPlaces slab_places(Builder& b, ValueId slot_row, ValueId offsets, const RowExchange& attributes) {
  const auto out = b.emit("slab_places", attributes, {slot_row, offsets});
  return {out[0], out[1], out[2]};
}
ValueId put_into_slabs(Builder& b, ValueId x, ValueId places, const SlabRows& attributes) {
  return b.emit("put_into_slabs", attributes, {x, places})[0];
}
ValueId take_from_slabs(Builder& b, ValueId slabs, ValueId places, const SlabRows& attributes) {
  return b.emit("take_from_slabs", attributes, {slabs, places})[0];
}
MovedSlabs exchange_slabs(Builder& b, ValueId slabs, ValueId counts, const RowExchange& attributes) {
  const auto out = b.emit("exchange_slabs", attributes, {slabs, counts});
  return {out[0], out[1]};
}
ValueId return_slabs(Builder& b, ValueId slabs, const RowExchange& attributes) {
  return b.emit("return_slabs", attributes, {slabs})[0];
}
}  // namespace ops
}  // namespace farskip
