// SPDX-License-Identifier: Apache-2.0
// What DeepSeek-V2 (arXiv 2405.04434) and V3 (arXiv 2412.19437) have in common: multi-head latent attention,
// and the sizes of their experts. Field names are those of the hub's config.json.

#include <algorithm>
#include <cmath>

#include "model/family.h"

namespace farskip {
namespace {

double yarn_mscale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

}  // namespace

void read_latent_attention(Reader& r, ModelConfig& c) {
  MlaConfig mla;
  mla.q_lora_rank = r.optional_integer("q_lora_rank", {.min = 1, .max = 1 << 20}).value_or(0);
  mla.kv_lora_rank = r.integer("kv_lora_rank", {.min = 1, .max = 1 << 20});
  mla.nope_dim = r.integer("qk_nope_head_dim", {.min = 1, .max = 1 << 16});
  mla.rope_dim = r.integer("qk_rope_head_dim", {.min = 2, .max = 1 << 16});
  mla.v_dim = r.integer("v_head_dim", {.min = 1, .max = 1 << 16});
  if (mla.rope_dim % 2 != 0) r.fail("qk_rope_head_dim", "rotated pairs need an even size");
  c.mla = mla;
  r.require_value("num_key_value_heads", c.num_heads, "latent attention has as many as num_attention_heads");
  r.require_value("head_dim", mla.rope_dim, "this family writes qk_rope_head_dim there");
  r.require_value("qk_head_dim", mla.nope_dim + mla.rope_dim, "it is qk_nope_head_dim + qk_rope_head_dim");
  c.rope = read_rope(r, c.max_positions);
  c.rope.interleaved = true;
  r.require_value("use_mla", true, "this family has latent attention");
  // YaRN's temperature on the logits (squared: it stands on queries and keys).
  const double m = c.rope.mscale_all_dim > 0 ? yarn_mscale(c.rope.factor, c.rope.mscale_all_dim) : 1.0;
  c.softmax_scale = m * m / std::sqrt(static_cast<double>(c.qk_head_dim()));
}

void write_latent_attention(const ModelConfig& c, ConfigNode& map) {
  map.set("num_key_value_heads", make_node(c.num_heads));
  map.set("q_lora_rank", c.mla->q_lora_rank > 0 ? make_node(c.mla->q_lora_rank) : ConfigNode{});
  map.set("kv_lora_rank", make_node(c.mla->kv_lora_rank));
  map.set("qk_nope_head_dim", make_node(c.mla->nope_dim));
  map.set("qk_rope_head_dim", make_node(c.mla->rope_dim));
  map.set("v_head_dim", make_node(c.mla->v_dim));
  write_rope(c.rope, map);
}

void read_deepseek_experts(Reader& r, ModelConfig& c, double scaling) {
  MoeConfig& moe = c.moe;
  r.also_called("n_routed_experts", {"num_experts", "num_local_experts"});
  r.also_called("n_shared_experts", {"num_shared_experts"});
  moe.num_experts = r.integer("n_routed_experts", {.min = 1, .max = 4096});
  r.also_called("num_experts_per_tok", {"num_experts_per_token"});
  moe.top_k = r.integer("num_experts_per_tok", {.min = 1, .max = 256});
  moe.expert_size = r.integer("moe_intermediate_size", {.min = 1, .max = 1 << 22});
  moe.shared_size =
      moe.expert_size * r.optional_integer("n_shared_experts", {.min = 0, .max = 64}).value_or(0);
  moe.scaling = r.real("routed_scaling_factor", {.min = 0.0, .above_min = true}, scaling);
  const std::int64_t first = r.integer("first_k_dense_replace", {.min = 0}, 0);
  r.require_value("moe_layer_freq", 1, "only every layer after the dense ones is built with experts");
  for (std::int64_t layer = 0; layer < c.num_layers; ++layer) c.moe_layers.push_back(layer >= first);
  for (const std::int64_t layer : r.integers("mlp_only_layers", {.min = 0}, {}, {}))
    if (layer >= first) r.fail("mlp_only_layers", fmt::format("first_k_dense_replace is {}", first));
  r.require_value("decoder_sparse_step", 1, "moe_layer_freq says it in this family");
  r.also_called("aux_loss_alpha", {"router_aux_loss_coef"});
  c.aux_loss = r.real("aux_loss_alpha", {.min = 0.0}, 0.001);
  r.require_value("seq_aux", true, "the balancing loss is per sequence");
}

void read_expert_groups(Reader& r, ModelConfig& c, bool choose_groups, const GroupDefaults& defaults) {
  MoeConfig& moe = c.moe;
  const auto groups = r.optional_integer("n_group", {.min = 1});
  const auto top_groups = r.optional_integer("topk_group", {.min = 1});
  if (choose_groups) {
    const GroupDefaults absent = r.is_foreign() ? defaults : GroupDefaults{};
    moe.num_groups = groups.value_or(absent.groups);
    moe.top_groups = top_groups.value_or(absent.top_groups);
    if (r.sound("n_group") && (moe.num_experts % moe.num_groups != 0 || moe.top_groups > moe.num_groups))
      r.fail("n_group", fmt::format("{} groups, of which {} are chosen, do not divide {} experts",
                                    moe.num_groups, moe.top_groups, moe.num_experts));
  }
  if (r.sound("n_group") && r.sound("num_experts_per_tok") && moe.num_groups > 0 &&
      moe.top_k > moe.num_experts / moe.num_groups * moe.top_groups)
    r.fail("num_experts_per_tok", fmt::format("{} experts per token, only {} to choose from", moe.top_k,
                                              moe.num_experts / moe.num_groups * moe.top_groups));
}

void write_deepseek_experts(const ModelConfig& c, ConfigNode& map) {
  map.set("n_routed_experts", make_node(c.moe.num_experts));
  map.set("num_experts_per_tok", make_node(c.moe.top_k));
  map.set("moe_intermediate_size", make_node(c.moe.expert_size));
  map.set("n_shared_experts", make_node(c.moe.shared_size / c.moe.expert_size));
  map.set("routed_scaling_factor", make_node(c.moe.scaling));
}

void write_deepseek_layers(const ModelConfig& c, ConfigNode& map) {
  const auto first = std::find(c.moe_layers.begin(), c.moe_layers.end(), true) - c.moe_layers.begin();
  map.set("first_k_dense_replace", make_node(static_cast<std::int64_t>(first)));
  map.set("moe_layer_freq", make_node(std::int64_t{1}));
  map.set("aux_loss_alpha", make_node(c.aux_loss));
  map.set("seq_aux", make_node(true));
}

}  // namespace farskip
