// SPDX-License-Identifier: Apache-2.0
// Losses of distillation over vocabularies that are cut over ranks.
#include "ops/distill_ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

namespace {

/// h, w, ht, wt and targets from input `first` on.
void check_parts(const OpTypes& t, std::size_t first, const char* op) {
  const auto& a = t.get<DistillPart>();
  const Shape &h = t.shape(first), &w = t.shape(first + 1), &ht = t.shape(first + 2),
              &wt = t.shape(first + 3);
  constexpr std::int64_t most_ids = 1 << 24;  // an id is a column of f32
  FARSKIP_SHAPE(h[1] == w[1] && ht[1] == wt[1] && w[0] == wt[0] && h[0] == ht[0] &&
                    h[0] == t.shape(first + 4)[0] && a.loss.top_k == 0 && a.loss.jsd == 0 &&
                    a.part.first >= 0 && a.part.own(w[0]).count > 0 && a.part.size(w[0]) <= most_ids,
                op, t);
}

/// sums, fixed and targets from input `first` on.
void check_joint(const OpTypes& t, std::size_t first, const char* op) {
  const std::int64_t rows = t.shape(first)[0], tokens = t.shape(first + 2)[0];
  FARSKIP_SHAPE(t.shape(first) == (Shape{rows, kNumDistillSums}) &&
                    t.shape(first + 1) == (Shape{rows, kNumDistillFixed}) &&
                    t.get<JointDistill>().parts.rows > 0 &&
                    (tokens == 0 ? rows == 0 : rows > 0 && rows % tokens == 0),
                op, t);
}

void register_parts(OpTable& table) {
  table.add(
      {.name = "distill_stats",
       .parse_attributes = &Attributes::parse<DistillPart>,
       .min_inputs = 5,
       .max_inputs = 5,
       .inputs = {In::compute, In::compute, In::compute, In::compute, In::integer},
       .infer = [](const OpTypes& t) -> std::vector<TensorType> {
         check_parts(t, 0, "distill_stats");
         const DType sums = wide(t.in(0).dtype);
         const std::int64_t tokens = t.shape(0)[0];
         return {{sums, Shape{tokens, kNumDistillSums}, {}}, {sums, Shape{tokens, kNumDistillFixed}, {}}};
       },
       .gradient =
           [](GradientCall& g) {
             DistillPart a = g.get<DistillPart>();
             a.loss.trains_head = g.needs(1);
             std::vector<ValueId> in{g.required_dout(0)};
             for (std::size_t i = 0; i < 5; ++i) in.push_back(g.in(i));
             const auto d = g.builder().emit("distill_stats_grad", a, std::move(in));
             g.set(0, d[0]);
             if (a.loss.trains_head) g.set(1, d[1]);
           },
       .cost =
           [](const OpTypes& t) {
             return flops_cost(head_flops(t.shape(0), t.shape(1)) + head_flops(t.shape(2), t.shape(3)));
           }});

  table.add({.name = "distill_stats_grad",
             .parse_attributes = &Attributes::parse<DistillPart>,
             .min_inputs = 6,  // dsums, h, w, ht, wt, targets
             .max_inputs = 7,
             .inputs = {In::wide, In::compute, In::compute, In::compute, In::compute, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               check_parts(t, 1, "distill_stats_grad");
               FARSKIP_SHAPE(t.shape(0) == (Shape{t.shape(1)[0], kNumDistillSums}), "distill_stats_grad", t);
               std::vector<TensorType> types{like(t.in(1))};
               if (t.get<DistillPart>().loss.trains_head)
                 types.push_back({wide(t.in(1).dtype), t.shape(2), {}});
               return types;
             },
             .cost =
                 [](const OpTypes& t) {
                   const double products = t.get<DistillPart>().loss.trains_head ? 3.0 : 2.0;
                   return flops_cost(products * head_flops(t.shape(1), t.shape(2)) +
                                     head_flops(t.shape(3), t.shape(4)));
                 },
             .in_place = {{1, 6}},
             .accumulates = {{1, 6}}});
}

void register_joint(OpTable& table) {
  table.add({.name = "joint_distill_loss",
             .parse_attributes = &Attributes::parse<JointDistill>,
             .min_inputs = 3,  // sums, fixed, targets
             .max_inputs = 3,
             .inputs = {In::wide, In::wide, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               check_joint(t, 0, "joint_distill_loss");
               return {{t.in(0).dtype, Shape{1}, {}},
                       {DType::f64, Shape{static_cast<std::int64_t>(kDistillStats.size())}, {}}};
             },
             .gradient =
                 [](GradientCall& g) {
                   g.set(0, g.builder().emit("joint_distill_loss_grad", g.get<JointDistill>(),
                                             {g.dout(), g.in(0), g.in(1), g.in(2)})[0]);
                 }});

  table.add({.name = "joint_distill_loss_grad",
             .parse_attributes = &Attributes::parse<JointDistill>,
             .min_inputs = 4,  // dloss, sums, fixed, targets
             .max_inputs = 4,
             .inputs = {In::wide, In::wide, In::wide, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               check_joint(t, 1, "joint_distill_loss_grad");
               return {like(t.in(1))};
             }});
}

}  // namespace

void register_distill_parts(OpTable& table);
void register_distill_parts(OpTable& table) {
  register_parts(table);
  register_joint(table);
}

namespace ops {
DistillStats distill_stats(Builder& b, ValueId h, ValueId w, ValueId ht, ValueId wt, ValueId targets,
                           const DistillPart& attributes) {
  const auto out = b.emit("distill_stats", attributes, {h, w, ht, wt, targets});
  return {out[0], out[1]};
}
DistillResult joint_distill_loss(Builder& b, const DistillStats& stats, ValueId targets,
                                 const JointDistill& attributes) {
  const auto out = b.emit("joint_distill_loss", attributes, {stats.sums, stats.fixed, targets});
  return {out[0], out[1]};
}
}  // namespace ops
}  // namespace farskip
