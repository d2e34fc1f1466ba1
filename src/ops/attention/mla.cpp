// SPDX-License-Identifier: Apache-2.0
#include "farskip/ops/ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

void register_mla(OpTable& table);
void register_mla(OpTable& table) {
  table.add({.name = "mla_key_value",
             .parse_attributes = &Attributes::parse<MlaKeyValue>,
             .min_inputs = 2,
             .max_inputs = 2,
             .inputs = {In::compute},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const auto& a = t.get<MlaKeyValue>();
               FARSKIP_SHAPE(t.shape(0)[1] == a.heads * (a.nope_dim + a.v_dim) && t.shape(1)[1] == a.rope_dim,
                             "mla_key_value", t);
               return {rows_like(t.in(0), a.heads * (a.nope_dim + a.rope_dim)),
                       rows_like(t.in(0), a.heads * a.v_dim)};
             },
             .gradient =
                 [](GradientCall& g) {
                   const auto d = g.builder().emit("mla_key_value_grad", g.get<MlaKeyValue>(),
                                                   {g.required_dout(0), g.required_dout(1)});
                   g.set(0, d[0]);
                   g.set(1, d[1]);
                 }});

  table.add({.name = "mla_key_value_grad",
             .parse_attributes = &Attributes::parse<MlaKeyValue>,
             .min_inputs = 2,
             .max_inputs = 2,
             .inputs = {In::compute},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const auto& a = t.get<MlaKeyValue>();
               FARSKIP_SHAPE(
                   t.shape(0)[1] == a.heads * (a.nope_dim + a.rope_dim) && t.shape(1)[1] == a.heads * a.v_dim,
                   "mla_key_value_grad", t);
               return {rows_like(t.in(0), a.heads * (a.nope_dim + a.v_dim)), rows_like(t.in(0), a.rope_dim)};
             }});
}

namespace ops {
std::pair<ValueId, ValueId> mla_key_value(Builder& b, ValueId kv, ValueId k_rope,
                                          const MlaKeyValue& attributes) {
  const auto out = b.emit("mla_key_value", attributes, {kv, k_rope});
  return {out[0], out[1]};
}
}  // namespace ops
}  // namespace farskip
