// SPDX-License-Identifier: Apache-2.0
#include "farskip/ops/optimizer_ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

void register_optimizer(OpTable& table);
void register_optimizer(OpTable& table) {
  table.add({.name = "sum_of_squares",
             .min_inputs = 1,
             .max_inputs = 4096,
             .inputs = {In::wide},
             .infer = [](const OpTypes&) -> std::vector<TensorType> {
               return {{DType::f64, Shape{1}, {}}};
             },
             .cost =
                 [](const OpTypes& t) {
                   double flops = 0;
                   for (const TensorType* type : t.inputs) flops += 2.0 * elements(type->shape);
                   return flops_cost(flops);
                 }});

  table.add({.name = "find_fault",
             .min_inputs = 1,
             .max_inputs = 4096,
             .inputs = {In::wide, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               for (const TensorType* input : t.inputs)
                 FARSKIP_SHAPE(input->shape == Shape{1}, "find_fault", t);
               return {like(t.in(0))};
             },
             .in_place = {{0, 0}}});

  table.add({.name = "clip_factor",
             .parse_attributes = &Attributes::parse<ClipFactor>,
             .min_inputs = 1,
             .max_inputs = 4,
             .inputs = {In::wide},
             .infer = [](const OpTypes&) -> std::vector<TensorType> {
               return {{DType::f32, Shape{1}, {}}, {DType::f32, Shape{1}, {}}};
             }});

  table.add({.name = "adamw",
             .parse_attributes = &Attributes::parse<AdamW>,
             .min_inputs = 6,  // parameter, m, v, gradient, factor, hyper
             .max_inputs = 6,
             .inputs = {In::wide, In::compute, In::compute, In::wide},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.shape(0) == t.shape(1) && t.shape(0) == t.shape(2) &&
                                 t.shape(0) == t.shape(3) && t.shape(5) == Shape{kNumHyper},
                             "adamw", t);
               std::vector<TensorType> out{like(t.in(0)), like(t.in(1)), like(t.in(2))};
               if (t.get<AdamW>().low_copy) out.push_back({DType::bf16, t.shape(0), {}});
               return out;
             },
             .cost = [](const OpTypes& t) { return flops_cost(15.0 * elements(t.shape(0))); },
             .in_place = {{0, 0}, {1, 1}, {2, 2}}});

  table.add({.name = "moving_average",
             .parse_attributes = &Attributes::parse<MovingAverage>,
             .min_inputs = 4,  // average, parameter, factor, hyper
             .max_inputs = 4,
             .inputs = {In::wide},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.shape(0) == t.shape(1) && t.shape(3) == Shape{kNumHyper}, "moving_average", t);
               return {like(t.in(0))};
             },
             .cost = [](const OpTypes& t) { return flops_cost(3.0 * elements(t.shape(0))); },
             .in_place = {{0, 0}}});
}

namespace ops {
ValueId sum_of_squares(Builder& b, std::vector<ValueId> tensors) {
  return b.emit("sum_of_squares", std::move(tensors))[0];
}
ValueId find_fault(Builder& b, ValueId number, std::vector<ValueId> flags) {
  flags.insert(flags.begin(), number);
  return b.emit("find_fault", std::move(flags))[0];
}
std::pair<ValueId, ValueId> clip_factor(Builder& b, std::vector<ValueId> sums, double max_norm) {
  const auto out = b.emit("clip_factor", ClipFactor{max_norm}, std::move(sums));
  return {out[0], out[1]};
}
AdamWState adamw(Builder& b, const AdamWState& state, ValueId grad, ValueId factor, ValueId hyper,
                 const AdamW& attributes) {
  const auto out = b.emit("adamw", attributes, {state.parameter, state.m, state.v, grad, factor, hyper});
  return {out[0], out[1], out[2], attributes.low_copy ? out[3] : ValueId()};
}
ValueId moving_average(Builder& b, ValueId average, ValueId parameter, ValueId factor, ValueId hyper,
                       const MovingAverage& attributes) {
  return b.emit("moving_average", attributes, {average, parameter, factor, hyper})[0];
}
}  // namespace ops
}  // namespace farskip
