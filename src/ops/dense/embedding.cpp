// SPDX-License-Identifier: Apache-2.0
#include "farskip/ops/ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

void register_embedding(OpTable& table);
void register_embedding(OpTable& table) {
  table.add({.name = "embedding",
             .parse_attributes = &Attributes::parse<VocabularyPart>,
             .min_inputs = 2,
             .max_inputs = 2,
             .inputs = {In::compute, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.shape(0).rank() == 2 && t.shape(1).rank() == 1, "embedding", t);
               return {{t.in(0).dtype, Shape{t.shape(1)[0], t.shape(0)[1]}, {}}};
             },
             .gradient =
                 [](GradientCall& g) {
                   const auto& part = g.get<VocabularyPart>();
                   const EmbeddingGrad attributes{g.shape(g.in(0))[0], part.first, part.of};
                   g.set(0, g.builder().emit("embedding_grad", attributes, {g.dout(), g.in(1)})[0]);
                 },
             .cost = [](const OpTypes& t) -> OpCost {
               return {.bytes = 2.0 * static_cast<double>(t.outputs[0].num_bytes())};
             }});

  table.add({.name = "embedding_grad",
             .parse_attributes = &Attributes::parse<EmbeddingGrad>,
             .min_inputs = 2,
             .max_inputs = 3,
             .inputs = {In::compute, In::integer},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               FARSKIP_SHAPE(t.shape(0).rank() == 2 && t.shape(0)[0] == t.shape(1)[0], "embedding_grad", t);
               return {{wide(t.in(0).dtype), Shape{t.get<EmbeddingGrad>().rows, t.shape(0)[1]}, {}}};
             },
             .cost = [](const OpTypes& t) -> OpCost {
               const double rows = 3.0 * static_cast<double>(t.in(0).num_bytes());
               return {.flops = elements(t.shape(0)),
                       .bytes = rows + (t.has(2) ? 0.0 : static_cast<double>(t.outputs[0].num_bytes()))};
             },
             .in_place = {{0, 2}},
             .accumulates = {{0, 2}}});
}

namespace ops {
ValueId embedding(Builder& b, ValueId table, ValueId tokens, const VocabularyPart& part) {
  return b.emit("embedding", part, {table, tokens})[0];
}
}  // namespace ops
}  // namespace farskip
