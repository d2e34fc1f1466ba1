// SPDX-License-Identifier: Apache-2.0
#include "ops/distill_ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

namespace {

constexpr auto kNumStats = static_cast<std::int64_t>(kDistillStats.size());

double head_flops(const Shape& h, const Shape& w) {
  return 2.0 * elements(h) * static_cast<double>(w[0]);
}

/// Inputs of a loss from input `first` on (the gradient op has dloss before them).
void check_live(const OpTypes& t, std::size_t first) {
  const Shape &h = t.shape(first), &w = t.shape(first + 1), &ht = t.shape(first + 2),
              &wt = t.shape(first + 3);
  FARSKIP_SHAPE(h[1] == w[1] && ht[1] == wt[1] && w[0] == wt[0] && h[0] == ht[0] &&
                    h[0] == t.shape(first + 4)[0] && t.get<DistillLoss>().top_k <= w[0],
                "distill_loss", t);
}

void check_cached(const OpTypes& t, std::size_t first) {
  const Shape &h = t.shape(first), &w = t.shape(first + 1);
  const std::int64_t top_k = t.get<DistillLoss>().top_k;
  FARSKIP_SHAPE(h[1] == w[1] && top_k >= 1 && top_k <= w[0] && t.shape(first + 2) == (Shape{h[0], top_k}) &&
                    t.shape(first + 3) == (Shape{h[0], top_k}) && t.shape(first + 4) == Shape{h[0]} &&
                    t.shape(first + 5) == Shape{h[0]} && h[0] == t.shape(first + 6)[0],
                "cached_distill_loss", t);
}

std::vector<TensorType> loss_types(const OpTypes& t, std::size_t first) {
  return {{wide(t.in(first).dtype), Shape{1}, {}}, {DType::f64, Shape{kNumStats}, {}}};
}

std::vector<TensorType> gradient_types(const OpTypes& t) {
  const DType sums = wide(t.in(1).dtype);
  std::vector<TensorType> types = loss_types(t, 1);
  types.push_back(like(t.in(1)));
  if (t.get<DistillLoss>().trains_head) types.push_back({sums, t.shape(2), {}});
  return types;
}

/// Sets the gradients of h and w by the op's own gradient op.
void emit_gradient(GradientCall& g, const char* op, std::size_t inputs) {
  DistillLoss a = g.get<DistillLoss>();
  a.trains_head = g.needs(1);
  std::vector<ValueId> in{g.dout()};
  for (std::size_t i = 0; i < inputs; ++i) in.push_back(g.in(i));
  const auto d = g.builder().emit(op, a, std::move(in));
  g.set(0, d[2]);
  if (a.trains_head) g.set(1, d[3]);
}

double gradient_flops(const OpTypes& t) {
  return (t.get<DistillLoss>().trains_head ? 3.0 : 2.0) * head_flops(t.shape(1), t.shape(2));
}

void register_losses(OpTable& table) {
  table.add({.name = "distill_loss",
             .parse_attributes = &Attributes::parse<DistillLoss>,
             .min_inputs = 5,
             .max_inputs = 5,
             .inputs = {In::compute, In::compute, In::compute, In::compute, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               check_live(t, 0);
               return loss_types(t, 0);
             },
             .gradient = [](GradientCall& g) { emit_gradient(g, "distill_loss_grad", 5); },
             .fused_gradient = "distill_loss_grad",
             .cost =
                 [](const OpTypes& t) {
                   return flops_cost(head_flops(t.shape(0), t.shape(1)) + head_flops(t.shape(2), t.shape(3)));
                 }});
  table.add({.name = "distill_loss_grad",
             .parse_attributes = &Attributes::parse<DistillLoss>,
             .min_inputs = 6,
             .max_inputs = 7,
             .inputs = {In::wide, In::compute, In::compute, In::compute, In::compute, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               check_live(t, 1);
               return gradient_types(t);
             },
             .cost =
                 [](const OpTypes& t) {
                   return flops_cost(gradient_flops(t) + head_flops(t.shape(3), t.shape(4)));
                 },
             .in_place = {{3, 6}},
             .accumulates = {{3, 6}}});
  table.add({.name = "cached_distill_loss",
             .parse_attributes = &Attributes::parse<DistillLoss>,
             .min_inputs = 7,
             .max_inputs = 7,
             .inputs = {In::compute, In::compute, In::integer, In::wide, In::wide, In::wide, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               check_cached(t, 0);
               return loss_types(t, 0);
             },
             .gradient = [](GradientCall& g) { emit_gradient(g, "cached_distill_loss_grad", 7); },
             .fused_gradient = "cached_distill_loss_grad",
             .cost = [](const OpTypes& t) { return flops_cost(head_flops(t.shape(0), t.shape(1))); }});
  table.add(
      {.name = "cached_distill_loss_grad",
       .parse_attributes = &Attributes::parse<DistillLoss>,
       .min_inputs = 8,
       .max_inputs = 9,
       .inputs = {In::wide, In::compute, In::compute, In::integer, In::wide, In::wide, In::wide, In::integer},
       .infer = [](const OpTypes& t) -> std::vector<TensorType> {
         check_cached(t, 1);
         return gradient_types(t);
       },
       .cost = [](const OpTypes& t) { return flops_cost(gradient_flops(t)); },
       .in_place = {{3, 8}},
       .accumulates = {{3, 8}}});
  table.add({.name = "teacher_top_k",
             .parse_attributes = &Attributes::parse<KeepTopK>,
             .min_inputs = 3,
             .max_inputs = 3,
             .inputs = {In::compute, In::compute, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const std::int64_t tokens = t.shape(0)[0], top_k = t.get<KeepTopK>().top_k;
               FARSKIP_SHAPE(t.shape(0)[1] == t.shape(1)[1] && tokens == t.shape(2)[0] && top_k >= 1 &&
                                 top_k <= t.shape(1)[0],
                             "teacher_top_k", t);
               const DType kept = wide(t.in(0).dtype);
               return {{DType::i32, Shape{tokens, top_k}, {}},
                       {kept, Shape{tokens, top_k}, {}},
                       {kept, Shape{tokens}, {}},
                       {kept, Shape{tokens}, {}}};
             },
             .cost = [](const OpTypes& t) { return flops_cost(head_flops(t.shape(0), t.shape(1))); }});
}

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

void register_distill_loss(OpTable& table);
void register_distill_loss(OpTable& table) {
  register_losses(table);
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

DistillResult distill_loss(Builder& b, ValueId h, ValueId w, ValueId ht, ValueId wt, ValueId targets,
                           const DistillLoss& attributes) {
  const auto out = b.emit("distill_loss", attributes, {h, w, ht, wt, targets});
  return {out[0], out[1]};
}
TeacherTopK teacher_top_k(Builder& b, ValueId ht, ValueId wt, ValueId targets, const KeepTopK& attributes) {
  const auto out = b.emit("teacher_top_k", attributes, {ht, wt, targets});
  return {out[0], out[1], out[2], out[3]};
}
DistillResult cached_distill_loss(Builder& b, ValueId h, ValueId w, const TeacherTopK& teacher,
                                  ValueId targets, const DistillLoss& attributes) {
  const auto out =
      b.emit("cached_distill_loss", attributes,
             {h, w, teacher.indices, teacher.log_probs, teacher.log_tail, teacher.target_log_prob, targets});
  return {out[0], out[1]};
}
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
