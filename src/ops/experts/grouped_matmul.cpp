// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "farskip/ops/ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

namespace {

double flops(double rows, const Shape& w) {
  return 2.0 * rows * static_cast<double>(w[1]) * static_cast<double>(w[2]);
}

/// Weights of an expert without rows are not read.
OpCost product_cost(const OpTypes& t) {
  const auto rows = static_cast<double>(t.shape(0)[0]), experts = static_cast<double>(t.shape(1)[0]);
  return {.flops = flops(rows, t.shape(1)),
          .bytes = static_cast<double>(t.in(0).num_bytes() + t.in(2).num_bytes() + t.outputs[0].num_bytes()) +
                   std::min(1.0, rows / experts) * static_cast<double>(t.in(1).num_bytes())};
}

}  // namespace

void register_grouped_matmul(OpTable& table);
void register_grouped_matmul(OpTable& table) {
  table.add({.name = "grouped_matmul",
             .parse_attributes = &Attributes::parse<GroupedMatmul>,
             .min_inputs = 3,  // x, w, offsets
             .max_inputs = 3,
             .inputs = {In::compute, In::compute, In::integer},
             .bounded = {0},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const Shape& w = t.shape(1);
               const bool transpose = t.get<GroupedMatmul>().transpose_w;
               FARSKIP_SHAPE(
                   w.rank() == 3 && t.shape(0)[1] == w[transpose ? 2 : 1] && t.shape(2) == Shape{w[0] + 1},
                   "grouped_matmul", t);
               return {rows_like(t.in(0), w[transpose ? 1 : 2])};
             },
             .gradient =
                 [](GradientCall& g) {
                   const bool transpose = g.get<GroupedMatmul>().transpose_w;
                   const ValueId x = g.in(0), w = g.in(1), offsets = g.in(2), dy = g.dout();
                   if (g.needs(0)) g.set(0, grouped_matmul(g.builder(), dy, w, offsets, {!transpose}));
                   if (!g.needs(1)) return;
                   const std::vector<ValueId> inputs =
                       transpose ? std::vector{dy, x, offsets} : std::vector{x, dy, offsets};
                   g.set(1, g.builder().emit("grouped_matmul_wgrad", inputs)[0]);
                 },
             .cost = product_cost,
             .routed = RoutedRows::by_expert});

  table.add({.name = "grouped_matmul_wgrad",
             .min_inputs = 3,  // dy, x, offsets
             .max_inputs = 4,
             .inputs = {In::compute, In::compute, In::integer},
             .bounded = {0, 1},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.shape(0)[0] == t.shape(1)[0], "grouped_matmul_wgrad", t);
               const DType dtype = t.in(0).dtype;
               return {{wide(dtype), Shape{t.shape(2)[0] - 1, t.shape(0)[1], t.shape(1)[1]}, {}}};
             },
             .cost =
                 [](const OpTypes& t) {
                   return flops_cost(flops(static_cast<double>(t.shape(0)[0]), t.outputs[0].shape));
                 },
             .in_place = {{0, 3}},
             .accumulates = {{0, 3}}});
}

namespace ops {
ValueId grouped_matmul(Builder& b, ValueId x, ValueId w, ValueId offsets, GroupedMatmul attributes) {
  return b.emit("grouped_matmul", attributes, {x, w, offsets})[0];
}
}  // namespace ops
}  // namespace farskip
