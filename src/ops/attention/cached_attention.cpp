// SPDX-License-Identifier: Apache-2.0
#include "ops/inference_ops.h"
#include "ops/rules.h"

namespace farskip {

using namespace ops;

namespace {

std::vector<TensorType> infer_attention(const OpTypes& t) {
  const auto& a = t.get<CachedAttention>();
  const Shape &q = t.shape(0), &keys = t.shape(1);
  const std::int64_t d = q[1] / a.heads;
  FARSKIP_SHAPE(a.heads % a.kv_heads == 0 && q[1] == a.heads * d && keys[1] == a.kv_heads * d &&
                    a.block_tokens > 0 && keys[0] % a.block_tokens == 0 && t.shape(2) == Shape{q[0]} &&
                    t.shape(3) == Shape{q[0]} && t.shape(4).rank() == 2 &&
                    (t.has(5) ? t.shape(5) == (Shape{keys[0], a.kv_heads * a.value_size})
                              : a.kv_heads == 1 && a.value_size <= d),
                "cached_attention", t);
  return {rows_like(t.in(0), a.heads * a.value_size)};
}

// How long sequences are is data: half of the longest.
OpCost attention_cost(const OpTypes& t) {
  const auto& a = t.get<CachedAttention>();
  const Shape& q = t.shape(0);
  const double keys = 0.5 * static_cast<double>(t.shape(4)[1] * a.block_tokens);
  const double width = static_cast<double>(q[1] + a.heads * a.value_size);
  const double row = static_cast<double>(row_size(t.shape(1)) + (t.has(5) ? row_size(t.shape(5)) : 0));
  const double tokens = static_cast<double>(q[0]);
  return {.flops = 2.0 * tokens * keys * width,
          .bytes = tokens * keys * row * static_cast<double>(dtype_size(t.in(1).dtype))};
}

}  // namespace

void register_cached_attention(OpTable& table);
void register_cached_attention(OpTable& table) {
  table.add({.name = "cached_attention",
             .parse_attributes = &Attributes::parse<CachedAttention>,
             .min_inputs = 5,
             .max_inputs = 6,
             .inputs = {In::compute, In::compute, In::integer, In::integer, In::integer, In::compute},
             .infer = infer_attention,
             .cost = attention_cost});
}

namespace ops {
ValueId cached_attention(Builder& b, ValueId q, ValueId keys, const CachePlace& place, ValueId values,
                         const CachedAttention& attributes) {
  return b.emit("cached_attention", attributes,
                {q, keys, place.sequences, place.positions, place.table, values})[0];
}
}  // namespace ops
}  // namespace farskip
