// SPDX-License-Identifier: Apache-2.0
#include "ops/distill_ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

namespace {

constexpr auto kNumStats = static_cast<std::int64_t>(kDistillStats.size());

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

}  // namespace

void register_distill_loss(OpTable& table);
void register_distill_loss(OpTable& table) {
  register_losses(table);
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

}  // namespace ops
}  // namespace farskip
