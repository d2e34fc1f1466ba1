#include "farskip/ops/ops.h"
#include "farskip/ops/rules.h"

namespace farskip {

using namespace ops;

void register_elementwise(OpTable& table);
void register_elementwise(OpTable& table) {
  table.add({.name = "add",
             .min_inputs = 2,
             .max_inputs = 2,
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
ValueId add(Builder& b, ValueId x, ValueId y) {
  return b.emit("add", {x, y})[0];
}
}  // namespace ops
}  // namespace farskip
