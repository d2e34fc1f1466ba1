// SPDX-License-Identifier: Apache-2.0
#include "model/lowering.h"

namespace farskip {

ValueId Lowering::rope_table() {
  if (rope_table_) return rope_table_;
  const RopeConfig& r = c_.rope;
  Builder b = builder();
  rope_table_ = ops::rope_table(b,
                                {.positions = options_.sequence_length,
                                 .dim = c_.rope_dim(),
                                 .theta = r.theta,
                                 .scaling = r.scaling,
                                 .factor = r.factor,
                                 .original_positions = r.original_positions,
                                 .beta_fast = r.beta_fast,
                                 .beta_slow = r.beta_slow,
                                 .attention_factor = r.attention_factor},
                                place_.positions);
  return rope_table_;
}

ValueId Lowering::rotate(ValueId x, std::int64_t head_dim, std::int64_t offset) {
  Builder b = builder();
  const ValueId table = rope_table();
  return ops::rope(
      b, x, table,
      {.head_dim = head_dim, .offset = offset, .dim = c_.rope_dim(), .interleaved = c_.rope.interleaved});
}

ValueId Lowering::attention_temperature() {
  if (!temperature_) {
    Builder b = builder();
    temperature_ = ops::attention_temperature(b,
                                              {.tokens = tokens_,
                                               .sequence_length = options_.sequence_length,
                                               .floor = c_.long_text.temperature_floor,
                                               .scale = c_.long_text.temperature_scale},
                                              place_.positions);
  }
  return temperature_;
}

std::int64_t Lowering::attention_chunk() const {
  return c_.long_text.is_rotated(scope_.layer) ? c_.long_text.chunk : 0;
}

ValueId Lowering::attend(ValueId q, ValueId k, ValueId v, std::int64_t kv_heads) {
  Builder b = builder();
  return ops::attention(
             b, q, k, v, document_start_,
             {.sequence_length = options_.cache ? options_.cache->fresh_length : options_.sequence_length,
              .heads = own_heads(),
              .kv_heads = kv_heads,
              .scale = c_.softmax_scale,
              .chunk = attention_chunk(),
              .deterministic = options_.deterministic})
      .out;
}

ValueId Lowering::cached(CacheKind kind, ValueId x, ValueId more) {
  Builder b = builder();
  const ValueId before = caches_.at(cache_name(kind, scope_.layer));
  const ValueId after = ops::write_cache(b, before, cache_rows_, x, more);
  graph_.add_update(before, after);
  return after;
}

ValueId Lowering::attend_cached(ValueId q, ValueId keys, ValueId values, std::int64_t kv_heads,
                                std::int64_t value_size) {
  Builder b = builder();
  return ops::cached_attention(b, q, keys, place_, values,
                               {.heads = own_heads(),
                                .kv_heads = kv_heads,
                                .scale = c_.softmax_scale,
                                .chunk = attention_chunk(),
                                .block_tokens = options_.cache->block_tokens,
                                .value_size = value_size});
}

ValueId Lowering::take_own_heads(ValueId x, std::int64_t heads) {
  if (num_parts() == 1) return x;
  Builder b = builder();
  const std::int64_t width = b.shape(x)[1], head = width / heads;
  // Fewer heads than ranks: consecutive ranks have the same one.
  const std::int64_t own = std::max<std::int64_t>(heads / num_parts(), 1);
  const std::int64_t first = heads * options_.mesh.rank(MeshAxis::tensor) / num_parts();
  return ops::take_columns(b, for_parts(x), {.first = first * head, .count = own * head, .of = width});
}

}  // namespace farskip
