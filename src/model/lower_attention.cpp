// SPDX-License-Identifier: Apache-2.0
#include "lowering.h"

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
  if (options_.cache && !c_.mla) {
    const ValueId keys = cached(CacheKind::keys, k), values = cached(CacheKind::values, v);
    if (reads_cache()) return attend_cached(q, keys, values, kv_heads, c_.v_head_dim());
  }
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

ValueId Lowering::attention_output(ValueId h, ValueId heads) {
  Builder b = builder();
  if (c_.gated_attention) heads = ops::sigmoid_gate(b, heads, project(for_parts(h), "gate_proj"));
  show("inner", heads);
  return linear_of_parts(heads, "self_attn.o_proj");
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

ValueId Lowering::latent_attention(ValueId h, const MlaConfig& mla) {
  Builder b = builder();
  ValueId q;
  std::vector<ValueId> shared;  // what all heads share
  if (mla.q_lora_rank > 0) {
    const ValueId weight = layer_parameter("self_attn.q_a_layernorm.weight");
    shared.push_back(normalised(project(h, "q_a_proj"), weight, MlaConfig::kNormEps));
  } else {
    q = project(for_parts(h), "q_proj");
  }
  const ValueId kv_a = project(h, "kv_a_proj_with_mqa");
  const auto parts = ops::split_columns(b, kv_a, {mla.kv_lora_rank, mla.rope_dim});
  shared.push_back(
      normalised(parts[0], layer_parameter("self_attn.kv_a_layernorm.weight"), MlaConfig::kNormEps));
  shared.push_back(rotate(parts[1], mla.rope_dim, 0));
  shared = for_parts(std::move(shared));
  if (!q) q = project(shared[0], "q_b_proj");
  const ValueId latent = shared[shared.size() - 2], rotated = shared.back();
  q = rotate(q, mla.nope_dim + mla.rope_dim, mla.nope_dim);
  if (options_.cache) {
    const ValueId latents = cached(CacheKind::latents, latent, rotated);
    if (reads_cache()) return attention_output(h, attend_absorbed(q, latents, mla));
  }
  const auto [k, v] = ops::mla_key_value(b, project(latent, "kv_b_proj"), rotated, head_parts(mla));
  return attention_output(h, attend(q, k, v, own_heads()));
}

ValueId Lowering::attend_absorbed(ValueId q, ValueId latents, const MlaConfig& mla) {
  Builder b = builder();
  const ValueId weight = layer_parameter("self_attn.kv_b_proj.weight");
  const ValueId absorbed = ops::absorb_query(b, q, weight, head_parts(mla));
  return ops::expand_value(b, attend_cached(absorbed, latents, {}, 1, mla.kv_lora_rank), weight,
                           head_parts(mla));
}

ValueId Lowering::grouped_query_attention(ValueId h) {
  Builder b = builder();
  const GqaConfig& gqa = c_.gqa;
  // A norm over all heads needs them on one rank; fewer heads than ranks are on several.
  const bool whole_q = gqa.qk_norm == QkNorm::projection;
  const bool whole_v = gqa.kv_heads < num_parts(), whole_k = whole_q || whole_v;
  ValueId q = project(whole_q ? h : for_parts(h), "q_proj");
  ValueId k = project(whole_k ? h : for_parts(h), "k_proj");
  ValueId v = project(whole_v ? h : for_parts(h), "v_proj");
  if (gqa.qk_norm == QkNorm::head || whole_q) {
    const auto weight = [&](std::string_view name, bool whole) {
      const ValueId w = layer_parameter(fmt::format("self_attn.{}.weight", name));
      return whole ? w : for_parts(w);
    };
    q = normalised(q, weight("q_norm", whole_q));
    k = normalised(k, weight("k_norm", whole_k));
  }
  if (whole_q) q = take_own_heads(q, c_.num_heads);
  if (whole_k) k = take_own_heads(k, gqa.kv_heads);
  if (whole_v) v = take_own_heads(v, gqa.kv_heads);
  if (gqa.clip > 0)
    for (ValueId* x : {&q, &k, &v}) *x = ops::clamp(b, *x, gqa.clip);
  if (c_.long_text.is_rotated(scope_.layer)) {
    for (ValueId* x : {&q, &k}) {
      *x = rotate(*x, gqa.head_dim, 0);
      if (gqa.qk_norm == QkNorm::rotated) *x = normalised(*x, ops::ones(b, gqa.head_dim), c_.rms_norm_eps);
    }
  } else if (c_.long_text.temperature_scale > 0) {
    q = ops::scale_rows(b, q, attention_temperature());
  }
  return attention_output(h, attend(q, k, v, own_kv_heads(c_, num_parts())));
}

}  // namespace farskip
