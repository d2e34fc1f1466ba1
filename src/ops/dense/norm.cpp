// SPDX-License-Identifier: Apache-2.0
#include "farskip/ops/ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

void register_norm(OpTable& table);
void register_norm(OpTable& table) {
  table.add(
      {.name = "rms_norm",
       .parse_attributes = &Attributes::parse<RmsNorm>,
       .min_inputs = 2,
       .max_inputs = 2,
       .inputs = {In::compute, In::wide},
       .infer = [](const OpTypes& t) -> std::vector<TensorType> {
         FARSKIP_SHAPE(t.shape(0).rank() == 2 && t.shape(1).rank() == 1 && t.shape(0)[1] % t.shape(1)[0] == 0,
                       "rms_norm", t);
         const DType sums = wide(t.in(0).dtype);
         return {like(t.in(0)), rows_like(t.in(0), t.shape(0)[1] / t.shape(1)[0], sums)};
       },
       .gradient =
           [](GradientCall& g) {
             const auto d =
                 g.builder().emit("rms_norm_grad", g.get<RmsNorm>(), {g.dout(), g.in(0), g.in(1), g.out(1)});
             g.set(0, d[0]);
             g.set(1, d[1]);
           },
       .cost = [](const OpTypes& t) { return flops_cost(4.0 * elements(t.shape(0))); }});

  table.add({.name = "rms_norm_grad",
             .parse_attributes = &Attributes::parse<RmsNorm>,
             .min_inputs = 4,
             .max_inputs = 6,
             .inputs = {In::compute, In::compute, In::wide, In::wide},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.in(0) == t.in(1), "rms_norm_grad", t);
               return {like(t.in(1)), like(t.in(2))};
             },
             .cost = [](const OpTypes& t) { return flops_cost(10.0 * elements(t.shape(0))); },
             .in_place = {{0, 0}, {0, 5}, {1, 4}},
             .accumulates = {{1, 4}, {0, 5}}});
}

namespace ops {
ValueId rms_norm(Builder& b, ValueId x, ValueId w, double eps) {
  return b.emit("rms_norm", RmsNorm{eps}, {x, w})[0];
}
}  // namespace ops
}  // namespace farskip
