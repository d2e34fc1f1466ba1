// SPDX-License-Identifier: Apache-2.0
#include <numeric>

#include "farskip/ops/ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

void register_columns(OpTable& table);
void register_columns(OpTable& table) {
  table.add({.name = "split_columns",
             .parse_attributes = &Attributes::parse<SplitColumns>,
             .min_inputs = 1,
             .max_inputs = 1,
             .inputs = {In::compute},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const auto& widths = t.get<SplitColumns>().widths;
               FARSKIP_SHAPE(std::accumulate(widths.begin(), widths.end(), std::int64_t{0}) == t.shape(0)[1],
                             "split_columns", t);
               std::vector<TensorType> out;
               for (const std::int64_t width : widths) out.push_back(rows_like(t.in(0), width));
               return out;
             },
             .gradient =
                 [](GradientCall& g) {
                   std::vector<ValueId> parts;
                   for (std::size_t i = 0; i < g.get<SplitColumns>().widths.size(); ++i)
                     parts.push_back(g.required_dout(i));
                   g.set(0, concat_columns(g.builder(), parts));
                 }});

  table.add({.name = "take_columns",
             .parse_attributes = &Attributes::parse<ColumnRange>,
             .min_inputs = 1,
             .max_inputs = 1,
             .inputs = {In::compute},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const auto& a = t.get<ColumnRange>();
               FARSKIP_SHAPE(t.shape(0)[1] == a.of && a.first >= 0 && a.first + a.count <= a.of,
                             "take_columns", t);
               return {rows_like(t.in(0), a.count)};
             },
             .gradient =
                 [](GradientCall& g) {
                   g.set(0, g.builder().emit("place_columns", g.get<ColumnRange>(), {g.dout()})[0]);
                 },
             .cheap = true});

  table.add({.name = "place_columns",
             .parse_attributes = &Attributes::parse<ColumnRange>,
             .min_inputs = 1,
             .max_inputs = 1,
             .inputs = {In::compute},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.shape(0)[1] == t.get<ColumnRange>().count, "place_columns", t);
               return {rows_like(t.in(0), t.get<ColumnRange>().of)};
             },
             .gradient =
                 [](GradientCall& g) { g.set(0, take_columns(g.builder(), g.dout(), g.get<ColumnRange>())); },
             .cheap = true});

  table.add({.name = "concat_columns",
             .min_inputs = 1,
             .max_inputs = 8,
             .inputs = {In::compute},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               std::int64_t width = 0;
               for (std::size_t i = 0; i < t.inputs.size(); ++i) {
                 FARSKIP_SHAPE(t.shape(i)[0] == t.shape(0)[0], "concat_columns", t);
                 width += t.shape(i)[1];
               }
               return {rows_like(t.in(0), width)};
             },
             .gradient =
                 [](GradientCall& g) {
                   std::vector<std::int64_t> widths;
                   for (std::size_t i = 0; g.in(i); ++i) widths.push_back(g.shape(g.in(i))[1]);
                   const auto parts = split_columns(g.builder(), g.dout(), widths);
                   for (std::size_t i = 0; i < parts.size(); ++i) g.set(i, parts[i]);
                 }});

  table.add({.name = "side_by_side",
             .parse_attributes = &Attributes::parse<SideBySide>,
             .min_inputs = 1,
             .max_inputs = 1,
             .inputs = {In::wide},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const auto& a = t.get<SideBySide>();
               const Shape& x = t.shape(0);
               FARSKIP_SHAPE(x.rank() == 2 && a.parts > 0 && x[0] % a.parts == 0 &&
                                 a.columns > (a.parts - 1) * x[1] && a.columns <= a.parts * x[1],
                             "side_by_side", t);
               return {{t.in(0).dtype, Shape{x[0] / a.parts, a.columns}, {}}};
             }});
}

namespace ops {
std::vector<ValueId> split_columns(Builder& b, ValueId x, std::vector<std::int64_t> widths) {
  return b.emit("split_columns", SplitColumns{std::move(widths)}, {x});
}
ValueId take_columns(Builder& b, ValueId x, const ColumnRange& attributes) {
  return b.emit("take_columns", attributes, {x})[0];
}
ValueId concat_columns(Builder& b, std::vector<ValueId> parts) {
  return b.emit("concat_columns", std::move(parts))[0];
}
ValueId side_by_side(Builder& b, ValueId x, const SideBySide& attributes) {
  return b.emit("side_by_side", attributes, {x})[0];
}
}  // namespace ops
}  // namespace farskip
