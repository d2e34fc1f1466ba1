// SPDX-License-Identifier: Apache-2.0
#include "ops/inference_ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

void register_sampling(OpTable& table);
void register_sampling(OpTable& table) {
  table.add({.name = "sample",
             .parse_attributes = &Attributes::parse<Sample>,
             .min_inputs = 3,
             .max_inputs = 4,
             .inputs = {In::wide, In::wide, In::integer, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const std::int64_t rows = t.shape(0)[0], vocab = t.shape(0)[1];
               const std::int64_t num_ids = t.get<Sample>().num_ids;
               FARSKIP_SHAPE(vocab > 0 && num_ids >= 0 && num_ids <= vocab &&
                                 t.shape(1) == (Shape{rows, 4}) && t.shape(2) == (Shape{rows, 4}) &&
                                 (!t.has(3) || t.shape(3) == (Shape{rows, (vocab + 31) / 32})),
                             "sample", t);
               return {{DType::i32, Shape{rows}, {}}};
             },
             .cost = [](const OpTypes& t) { return flops_cost(10.0 * elements(t.shape(0))); }});
}

namespace ops {

ValueId sample(Builder& b, ValueId logits, ValueId real, ValueId whole, ValueId seen,
               const Sample& attributes) {
  return b.emit("sample", attributes, {logits, real, whole, seen})[0];
}

}  // namespace ops
}  // namespace farskip
