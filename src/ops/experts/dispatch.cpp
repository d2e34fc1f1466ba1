// SPDX-License-Identifier: Apache-2.0
#include "farskip/ops/ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

void register_dispatch(OpTable& table);
void register_dispatch(OpTable& table) {
  table.add({.name = "sort_by_expert",
             .parse_attributes = &Attributes::parse<SortByExpert>,
             .min_inputs = 1,
             .max_inputs = 1,
             .inputs = {In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const std::int64_t rows = t.shape(0).num_elements();
               return {{DType::i32, Shape{rows}, {}},
                       {DType::i32, Shape{rows}, {}},
                       {DType::i32, Shape{t.get<SortByExpert>().num_experts + 1}, {}}};
             }});

  table.add({.name = "own_experts",
             .parse_attributes = &Attributes::parse<OwnExperts>,
             .min_inputs = 3,  // row_slot, slot_row, offsets
             .max_inputs = 3,
             .inputs = {In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const auto& a = t.get<OwnExperts>();
               FARSKIP_SHAPE(t.shape(0) == t.shape(1) && a.first >= 0 && a.count > 0 &&
                                 a.first + a.count < t.shape(2)[0],
                             "own_experts", t);
               return {{DType::i32, t.shape(0), {}},
                       {DType::i32, t.shape(1), {}},
                       {DType::i32, Shape{a.count + 1}, {}},
                       {DType::i32, Shape{1}, {}}};
             },
             .row_counts = {{0, 3}}});

  table.add({.name = "dispatch_rows",
             .parse_attributes = &Attributes::parse<TopK>,
             .min_inputs = 3,  // x, row_slot, slot_row
             .max_inputs = 3,
             .inputs = {In::compute, In::integer, In::integer},
             .bounded = {1},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.shape(1)[0] == t.shape(0)[0] * t.get<TopK>().top_k, "dispatch_rows", t);
               return {{t.in(0).dtype, Shape{t.shape(1)[0], t.shape(0)[1]}, t.in(1).count}};
             },
             .gradient =
                 [](GradientCall& g) {
                   g.set(0, g.builder().emit("combine_rows", g.get<TopK>(), {g.dout(), g.in(1), g.in(2)})[0]);
                 },
             .cost = [](const OpTypes& t) -> OpCost {
               return {.bytes = 2.0 * static_cast<double>(t.outputs[0].num_bytes())};
             },
             .cheap = true});

  table.add(
      {.name = "combine_rows",
       .parse_attributes = &Attributes::parse<TopK>,
       .min_inputs = 3,
       .max_inputs = 3,
       .inputs = {In::compute, In::integer, In::integer},
       .bounded = {0, 1},
       .infer = [](const OpTypes& t) -> std::vector<TensorType> {
         FARSKIP_SHAPE(t.shape(0)[0] == t.shape(2)[0], "combine_rows", t);
         return {{t.in(0).dtype, Shape{t.shape(2)[0] / t.get<TopK>().top_k, t.shape(0)[1]}, {}}};
       },
       .gradient =
           [](GradientCall& g) {
             g.set(0, g.builder().emit("dispatch_rows", g.get<TopK>(), {g.dout(), g.in(1), g.in(2)})[0]);
           },
       .cost = [](const OpTypes& t) { return flops_cost(elements(t.shape(0))); }});

  table.add({.name = "permute_values",
             .parse_attributes = &Attributes::parse<PermuteValues>,
             .min_inputs = 3,  // values, index, inverse
             .max_inputs = 3,
             .inputs = {In::wide, In::integer, In::integer},
             .bounded = {0, 1, 2},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.shape(0).num_elements() == t.shape(1)[0] && t.shape(1) == t.shape(2),
                             "permute_values", t);
               const std::int64_t rows = t.shape(1)[0], columns = t.get<PermuteValues>().columns;
               if (columns == 0) return {{t.in(0).dtype, Shape{rows}, t.in(1).count}};
               return {{t.in(0).dtype, Shape{rows / columns, columns}, {}}};
             },
             .gradient =
                 [](GradientCall& g) {
                   const Shape& shape = g.shape(g.in(0));
                   const PermuteValues back{shape.rank() == 1 ? 0 : shape.back()};
                   g.set(0, permute_values(g.builder(), g.dout(), g.in(2), g.in(1), back));
                 }});
}

namespace ops {
RoutedOrder sort_by_expert(Builder& b, ValueId indices, std::int64_t num_experts) {
  const auto out = b.emit("sort_by_expert", SortByExpert{num_experts}, {indices});
  return {out[0], out[1], out[2]};
}
RoutedOrder own_experts(Builder& b, const RoutedOrder& order, const OwnExperts& attributes) {
  const auto out = b.emit("own_experts", attributes, {order.row_slot, order.slot_row, order.offsets});
  return {out[0], out[1], out[2]};
}
ValueId dispatch_rows(Builder& b, ValueId x, const RoutedOrder& order, std::int64_t top_k) {
  return b.emit("dispatch_rows", TopK{top_k}, {x, order.row_slot, order.slot_row})[0];
}
ValueId combine_rows(Builder& b, ValueId y, const RoutedOrder& order, std::int64_t top_k) {
  return b.emit("combine_rows", TopK{top_k}, {y, order.row_slot, order.slot_row})[0];
}
ValueId permute_values(Builder& b, ValueId values, ValueId index, ValueId inverse, PermuteValues attributes) {
  return b.emit("permute_values", attributes, {values, index, inverse})[0];
}
}  // namespace ops
}  // namespace farskip
