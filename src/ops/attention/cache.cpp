// SPDX-License-Identifier: Apache-2.0
#include "ops/inference_ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

namespace {

std::vector<TensorType> infer_write(const OpTypes& t) {
  const std::int64_t tokens = t.shape(1)[0];
  const std::int64_t width = t.shape(2).back() + (t.has(3) ? t.shape(3).back() : 0);
  FARSKIP_SHAPE(t.shape(0).rank() == 2 && t.shape(0)[1] == width && t.shape(2)[0] == tokens &&
                    (!t.has(3) || t.shape(3)[0] == tokens),
                "write_cache", t);
  return {like(t.in(0))};
}

double head_product_flops(const OpTypes& t) {
  const auto& a = t.get<MlaKeyValue>();
  return 2.0 * static_cast<double>(t.shape(0)[0]) * elements(t.shape(1)) /
         static_cast<double>(a.nope_dim + a.v_dim);
}

bool fits(const OpTypes& t) {
  const auto& a = t.get<MlaKeyValue>();
  return t.shape(0).rank() == 2 && t.shape(1).rank() == 2 &&
         t.shape(1)[0] == a.heads * (a.nope_dim + a.v_dim);
}

}  // namespace

void register_cache(OpTable& table);
void register_cache(OpTable& table) {
  table.add({.name = "write_cache",
             .min_inputs = 3,
             .max_inputs = 4,
             .inputs = {In::compute, In::integer, In::compute, In::compute},
             .infer = infer_write,
             .cost = [](const OpTypes& t) -> OpCost {
               const auto rows = static_cast<double>(t.shape(1)[0] * t.shape(0)[1]);
               return {.bytes = 2.0 * rows * static_cast<double>(dtype_size(t.in(0).dtype))};
             },
             .in_place = {{0, 0}}});

  table.add(
      {.name = "absorb_query",
       .parse_attributes = &Attributes::parse<MlaKeyValue>,
       .min_inputs = 2,
       .max_inputs = 2,
       .inputs = {In::compute},
       .infer = [](const OpTypes& t) -> std::vector<TensorType> {
         const auto& a = t.get<MlaKeyValue>();
         FARSKIP_SHAPE(fits(t) && t.shape(0)[1] == a.heads * (a.nope_dim + a.rope_dim), "absorb_query", t);
         return {rows_like(t.in(0), a.heads * (t.shape(1)[1] + a.rope_dim))};
       },
       .cost =
           [](const OpTypes& t) {
             return flops_cost(head_product_flops(t) * static_cast<double>(t.get<MlaKeyValue>().nope_dim));
           }});

  table.add({.name = "expand_value",
             .parse_attributes = &Attributes::parse<MlaKeyValue>,
             .min_inputs = 2,
             .max_inputs = 2,
             .inputs = {In::compute},
             .infer = [](const OpTypes& t) -> std::vector<TensorType> {
               const auto& a = t.get<MlaKeyValue>();
               FARSKIP_SHAPE(fits(t) && t.shape(0)[1] == a.heads * t.shape(1)[1], "expand_value", t);
               return {rows_like(t.in(0), a.heads * a.v_dim)};
             },
             .cost =
                 [](const OpTypes& t) {
                   return flops_cost(head_product_flops(t) * static_cast<double>(t.get<MlaKeyValue>().v_dim));
                 }});
}

namespace ops {
ValueId write_cache(Builder& b, ValueId cache, ValueId rows, ValueId x, ValueId more) {
  return b.emit("write_cache", {cache, rows, x, more})[0];
}
ValueId absorb_query(Builder& b, ValueId q, ValueId w, const MlaKeyValue& attributes) {
  return b.emit("absorb_query", attributes, {q, w})[0];
}
ValueId expand_value(Builder& b, ValueId x, ValueId w, const MlaKeyValue& attributes) {
  return b.emit("expand_value", attributes, {x, w})[0];
}
}  // namespace ops
}  // namespace farskip
