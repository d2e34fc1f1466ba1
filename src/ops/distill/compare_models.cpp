// SPDX-License-Identifier: Apache-2.0
#include "ops/distill_ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

namespace {

/// Input `i`, where it is there, has a number for each token of the first one.
bool fits_tokens(const OpTypes& t, std::size_t i, std::size_t tokens) {
  return !t.has(i) || t.shape(i) == Shape{t.shape(tokens)[0]};
}

/// Two tensors of one shape, of the type `compared`, and targets → [1], and the gradient for the first.
/// `optional`: 1 where weights of tokens may follow.
void register_comparison(OpTable& table, const char* name, const char* gradient_name, In compared,
                         std::size_t optional, void (*gradient)(GradientCall&)) {
  std::vector<In> inputs{compared, compared, In::integer};
  inputs.resize(3 + optional, In::wide);
  std::vector<In> gradient_inputs = inputs;
  gradient_inputs.insert(gradient_inputs.begin(), In::wide);
  table.add({.name = name,
             .parse_attributes = &Attributes::parse<Weight>,
             .min_inputs = 3,
             .max_inputs = 3 + optional,
             .inputs = std::move(inputs),
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(
                   t.shape(0) == t.shape(1) && t.shape(0)[0] == t.shape(2)[0] && fits_tokens(t, 3, 0),
                   "a comparison", t);
               return {{wide(t.in(0).dtype), Shape{1}, {}}};
             },
             .gradient = gradient,
             .cost = [](const OpTypes& t) { return flops_cost(10.0 * elements(t.shape(0))); }});
  table.add({.name = gradient_name,
             .parse_attributes = &Attributes::parse<Weight>,
             .min_inputs = 4,
             .max_inputs = 4 + optional,
             .inputs = std::move(gradient_inputs),
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(
                   t.shape(1) == t.shape(2) && t.shape(1)[0] == t.shape(3)[0] && fits_tokens(t, 4, 1),
                   "the gradient of a comparison", t);
               return {like(t.in(1))};
             },
             .cost = [](const OpTypes& t) { return flops_cost(10.0 * elements(t.shape(1))); }});
}

}  // namespace

void register_compare_models(OpTable& table);
void register_compare_models(OpTable& table) {
  register_comparison(
      table, "squared_difference", "squared_difference_grad", In::compute, 1, [](GradientCall& g) {
        std::vector<ValueId> in{g.dout(), g.in(0), g.in(1), g.in(2)};
        if (g.in(3)) in.push_back(g.in(3));
        g.set(0, g.builder().emit("squared_difference_grad", g.get<Weight>(), std::move(in))[0]);
      });
  register_comparison(table, "router_divergence", "router_divergence_grad", In::wide, 0, [](GradientCall& g) {
    g.set(0, g.builder().emit("router_divergence_grad", g.get<Weight>(),
                              {g.dout(), g.in(0), g.in(1), g.in(2)})[0]);
  });
  table.add({.name = "relative_weights",
             .parse_attributes = &Attributes::parse<Sequences>,
             .min_inputs = 1,
             .max_inputs = 2,
             .inputs = {In::compute, In::wide},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const std::int64_t length = t.get<Sequences>().sequence_length;
               FARSKIP_SHAPE(t.shape(0).rank() == 2 && length > 0 && t.shape(0)[0] % length == 0 &&
                                 fits_tokens(t, 1, 0),
                             "relative_weights", t);
               return {{wide(t.in(0).dtype), Shape{t.shape(0)[0]}, {}}};
             },
             .cost = [](const OpTypes& t) { return flops_cost(2.0 * elements(t.shape(0))); }});
  table.add({.name = "count_routing_flips",
             .min_inputs = 3,
             .max_inputs = 3,
             .inputs = {In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.shape(0) == t.shape(1) && t.shape(0)[0] == t.shape(2)[0],
                             "count_routing_flips", t);
               return {{DType::i32, Shape{1}, {}}};
             }});
}

namespace ops {
ValueId squared_difference(Builder& b, ValueId x, ValueId y, ValueId targets, double weight,
                           ValueId token_weights) {
  std::vector<ValueId> in{x, y, targets};
  if (token_weights) in.push_back(token_weights);
  return b.emit("squared_difference", Weight{weight}, std::move(in))[0];
}
ValueId relative_weights(Builder& b, ValueId y, std::int64_t sequence_length, ValueId factors) {
  std::vector<ValueId> in{y};
  if (factors) in.push_back(factors);
  return b.emit("relative_weights", Sequences{sequence_length}, std::move(in))[0];
}
ValueId router_divergence(Builder& b, ValueId student, ValueId teacher, ValueId targets, double weight) {
  return b.emit("router_divergence", Weight{weight}, {student, teacher, targets})[0];
}
ValueId count_routing_flips(Builder& b, ValueId student, ValueId teacher, ValueId targets) {
  return b.emit("count_routing_flips", {student, teacher, targets})[0];
}
}  // namespace ops
}  // namespace farskip
