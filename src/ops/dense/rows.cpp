// SPDX-License-Identifier: Apache-2.0
#include <numeric>

#include "farskip/ops/ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

void register_rows(OpTable& table);
void register_rows(OpTable& table) {
  table.add({.name = "split_rows",
             .parse_attributes = &Attributes::parse<SplitRows>,
             .min_inputs = 1,
             .max_inputs = 1,
             .inputs = {In::any},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const auto& parts = t.get<SplitRows>().rows;
               FARSKIP_SHAPE(std::accumulate(parts.begin(), parts.end(), std::int64_t{0}) == t.shape(0)[0],
                             "split_rows", t);
               std::vector<TensorType> out;
               for (const std::int64_t rows : parts) out.push_back(with_rows(t.in(0), rows));
               return out;
             },
             .gradient =
                 [](GradientCall& g) {
                   std::vector<ValueId> parts;
                   for (std::size_t i = 0; i < g.get<SplitRows>().rows.size(); ++i)
                     parts.push_back(g.required_dout(i));
                   g.set(0, concat_rows(g.builder(), parts));
                 }});

  table.add({.name = "concat_rows",
             .min_inputs = 1,
             .max_inputs = kMostRowParts,
             .inputs = {In::any},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               std::int64_t rows = 0;
               for (std::size_t i = 0; i < t.inputs.size(); ++i) {
                 FARSKIP_SHAPE(
                     with_rows(t.in(i), t.shape(0)[0]).shape == t.shape(0) && t.in(i).dtype == t.in(0).dtype,
                     "concat_rows", t);
                 rows += t.shape(i)[0];
               }
               return {with_rows(t.in(0), rows)};
             },
             .gradient =
                 [](GradientCall& g) {
                   std::vector<std::int64_t> rows;
                   for (std::size_t i = 0; g.in(i); ++i) rows.push_back(g.shape(g.in(i))[0]);
                   const auto parts = split_rows(g.builder(), g.dout(), rows);
                   for (std::size_t i = 0; i < parts.size(); ++i) g.set(i, parts[i]);
                 }});
}

namespace ops {
std::vector<ValueId> split_rows(Builder& b, ValueId x, std::vector<std::int64_t> rows) {
  return b.emit("split_rows", SplitRows{std::move(rows)}, {x});
}
ValueId concat_rows(Builder& b, std::vector<ValueId> parts) {
  return b.emit("concat_rows", std::move(parts))[0];
}
}  // namespace ops
}  // namespace farskip
