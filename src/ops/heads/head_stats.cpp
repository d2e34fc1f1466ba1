// SPDX-License-Identifier: Apache-2.0
// Losses over a vocabulary that is cut over ranks.
#include "farskip/ops/ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

namespace {

/// h, w and targets from input `first` on.
void check_part(const OpTypes& t, std::size_t first, const char* op) {
  const auto& part = t.get<VocabularyPart>();
  const Shape &h = t.shape(first), &w = t.shape(first + 1);
  FARSKIP_SHAPE(h[1] == w[1] && h[0] == t.shape(first + 2)[0] && part.first >= 0 && part.own(w[0]).count > 0,
                op, t);
}

/// sums, fixed and targets from input `first` on: of parts one below the other.
void check_joint(const OpTypes& t, std::size_t first, const char* op) {
  const std::int64_t rows = t.shape(first)[0], tokens = t.shape(first + 2)[0];
  FARSKIP_SHAPE(t.shape(first) == (Shape{rows, kNumHeadSums}) &&
                    t.shape(first + 1) == (Shape{rows, kNumHeadFixed}) && t.get<JointParts>().rows > 0 &&
                    (tokens == 0 ? rows == 0 : rows > 0 && rows % tokens == 0),
                op, t);
}

}  // namespace

void register_head_stats(OpTable& table);
void register_head_stats(OpTable& table) {
  table.add({.name = "head_stats",
             .parse_attributes = &Attributes::parse<VocabularyPart>,
             .min_inputs = 3,  // h, w, targets
             .max_inputs = 3,
             .inputs = {In::compute, In::compute, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               check_part(t, 0, "head_stats");
               const DType sums = wide(t.in(0).dtype);
               const std::int64_t tokens = t.shape(0)[0];
               return {{sums, Shape{tokens, kNumHeadSums}, {}}, {sums, Shape{tokens, kNumHeadFixed}, {}}};
             },
             .gradient =
                 [](GradientCall& g) {
                   const auto d = g.builder().emit("head_stats_grad", g.get<VocabularyPart>(),
                                                   {g.required_dout(0), g.in(0), g.in(1), g.in(2)});
                   g.set(0, d[0]);
                   g.set(1, d[1]);
                 },
             .cost = [](const OpTypes& t) { return flops_cost(head_flops(t.shape(0), t.shape(1))); }});

  table.add({.name = "head_stats_grad",
             .parse_attributes = &Attributes::parse<VocabularyPart>,
             .min_inputs = 4,  // dsums, h, w, targets
             .max_inputs = 5,
             .inputs = {In::wide, In::compute, In::compute, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               check_part(t, 1, "head_stats_grad");
               FARSKIP_SHAPE(t.shape(0) == (Shape{t.shape(1)[0], kNumHeadSums}), "head_stats_grad", t);
               return {like(t.in(1)), {wide(t.in(1).dtype), t.shape(2), {}}};
             },
             .cost = [](const OpTypes& t) { return flops_cost(3.0 * head_flops(t.shape(1), t.shape(2))); },
             .in_place = {{1, 4}},
             .accumulates = {{1, 4}}});

  table.add({.name = "joint_cross_entropy",
             .parse_attributes = &Attributes::parse<JointParts>,
             .min_inputs = 3,  // sums, fixed, targets
             .max_inputs = 3,
             .inputs = {In::wide, In::wide, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               check_joint(t, 0, "joint_cross_entropy");
               return {{t.in(0).dtype, Shape{1}, {}}, {DType::i32, Shape{1}, {}}};
             },
             .gradient =
                 [](GradientCall& g) {
                   g.set(0, g.builder().emit("joint_cross_entropy_grad", g.get<JointParts>(),
                                             {g.dout(), g.in(0), g.in(1), g.in(2)})[0]);
                 }});

  table.add({.name = "joint_cross_entropy_grad",
             .parse_attributes = &Attributes::parse<JointParts>,
             .min_inputs = 4,  // dloss, sums, fixed, targets
             .max_inputs = 4,
             .inputs = {In::wide, In::wide, In::wide, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               check_joint(t, 1, "joint_cross_entropy_grad");
               return {like(t.in(1))};
             }});

  table.add({.name = "joint_token_losses",
             .parse_attributes = &Attributes::parse<JointParts>,
             .min_inputs = 3,  // sums, fixed, targets
             .max_inputs = 3,
             .inputs = {In::wide, In::wide, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               check_joint(t, 0, "joint_token_losses");
               return {{t.in(0).dtype, t.shape(2), {}}};
             }});
}

namespace ops {
HeadStats head_stats(Builder& b, ValueId h, ValueId w, ValueId targets, const VocabularyPart& part) {
  const auto out = b.emit("head_stats", part, {h, w, targets});
  return {out[0], out[1]};
}
LossResult joint_cross_entropy(Builder& b, const HeadStats& stats, ValueId targets,
                               const JointParts& attributes) {
  const auto out = b.emit("joint_cross_entropy", attributes, {stats.sums, stats.fixed, targets});
  return {out[0], out[1]};
}
ValueId joint_token_losses(Builder& b, const HeadStats& stats, ValueId targets,
                           const JointParts& attributes) {
  return b.emit("joint_token_losses", attributes, {stats.sums, stats.fixed, targets})[0];
}
}  // namespace ops
}  // namespace farskip
