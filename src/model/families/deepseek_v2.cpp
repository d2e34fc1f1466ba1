// SPDX-License-Identifier: Apache-2.0
// DeepSeek-V2 (arXiv 2405.04434): multi-head latent attention, shared and routed experts, the first layers
// dense. Field names are those of the hub's config.json.

#include <cmath>

#include "farskip/model/family.h"

namespace farskip {
namespace {

enum class TopK { greedy, group_limited_greedy };
constexpr Choice<TopK> kTopKNames[] = {{"greedy", TopK::greedy},
                                       {"group_limited_greedy", TopK::group_limited_greedy}};

double yarn_mscale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

void read_attention(Reader& r, ModelConfig& c) {
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
  c.rope = read_rope(r);
  c.rope.interleaved = true;
  for (const char* key : {"rope_interleave", "rope_interleaved"})
    r.require_value(key, true, "this family rotates pairs of neighbours");
  for (const char* key : {"qk_norm", "use_qk_norm", "qk_layernorm"})
    r.require_value(key, false, "this family normalises the latents");
  r.require_value("use_mla", true, "this family has latent attention");
  // YaRN's temperature on the logits (squared: it stands on queries and keys).
  const double m = c.rope.mscale_all_dim > 0 ? yarn_mscale(c.rope.factor, c.rope.mscale_all_dim) : 1.0;
  c.softmax_scale = m * m / std::sqrt(static_cast<double>(c.qk_head_dim()));
}

void read_experts(Reader& r, ModelConfig& c) {
  MoeConfig& moe = c.moe;
  r.also_called("n_routed_experts", {"num_experts", "num_local_experts"});
  r.also_called("n_shared_experts", {"num_shared_experts"});
  moe.num_experts = r.integer("n_routed_experts", {.min = 1, .max = 4096});
  r.also_called("num_experts_per_tok", {"num_experts_per_token"});
  moe.top_k = r.integer("num_experts_per_tok", {.min = 1, .max = 256});
  moe.expert_size = r.integer("moe_intermediate_size", {.min = 1, .max = 1 << 22});
  moe.shared_size =
      moe.expert_size * r.optional_integer("n_shared_experts", {.min = 0, .max = 64}).value_or(0);
  moe.scaling = r.real("routed_scaling_factor", {.min = 0.0, .above_min = true}, 1.0);
  r.require_value("norm_topk_prob", false,
                  "public implementations of this family disagree on what true means");
  r.require_value("scoring_func", "softmax", "this family scores with softmax");
  const TopK method = r.choice("topk_method", kTopKNames, TopK::greedy);
  const auto groups = r.optional_integer("n_group", {.min = 1});
  const auto top_groups = r.optional_integer("topk_group", {.min = 1});
  if (method == TopK::group_limited_greedy) {
    moe.num_groups = groups.value_or(1);
    moe.top_groups = top_groups.value_or(1);
    if (r.sound("n_group") && (moe.num_experts % moe.num_groups != 0 || moe.top_groups > moe.num_groups))
      r.fail("n_group", fmt::format("{} groups, of which {} are chosen, do not divide {} experts",
                                    moe.num_groups, moe.top_groups, moe.num_experts));
  }
  if (r.sound("n_group") && r.sound("num_experts_per_tok") && moe.num_groups > 0 &&
      moe.top_k > moe.num_experts / moe.num_groups * moe.top_groups)
    r.fail("num_experts_per_tok", fmt::format("{} experts per token, only {} to choose from", moe.top_k,
                                              moe.num_experts / moe.num_groups * moe.top_groups));
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

ModelConfig read(Reader& r) {
  ModelConfig c;
  read_common(r, c);
  read_attention(r, c);
  read_experts(r, c);
  read_fixed_choices(r, c);
  return c;
}

void write(const ModelConfig& c, ConfigNode& map) {
  write_common(c, map);
  map.set("num_key_value_heads", make_node(c.num_heads));
  map.set("q_lora_rank", c.mla->q_lora_rank > 0 ? make_node(c.mla->q_lora_rank) : ConfigNode{});
  map.set("kv_lora_rank", make_node(c.mla->kv_lora_rank));
  map.set("qk_nope_head_dim", make_node(c.mla->nope_dim));
  map.set("qk_rope_head_dim", make_node(c.mla->rope_dim));
  map.set("v_head_dim", make_node(c.mla->v_dim));
  write_rope(c.rope, map);
  map.set("n_routed_experts", make_node(c.moe.num_experts));
  map.set("num_experts_per_tok", make_node(c.moe.top_k));
  map.set("moe_intermediate_size", make_node(c.moe.expert_size));
  map.set("n_shared_experts", make_node(c.moe.shared_size / c.moe.expert_size));
  map.set("routed_scaling_factor", make_node(c.moe.scaling));
  map.set("norm_topk_prob", make_node(false));
  map.set("scoring_func", make_node("softmax"));
  const bool grouped = c.moe.num_groups > 1;
  map.set("topk_method", make_node(grouped ? "group_limited_greedy" : "greedy"));
  map.set("n_group", grouped ? make_node(c.moe.num_groups) : ConfigNode{});
  map.set("topk_group", grouped ? make_node(c.moe.top_groups) : ConfigNode{});
  std::int64_t first = 0;
  while (first < c.num_layers && !c.moe_layers[static_cast<std::size_t>(first)]) ++first;
  map.set("first_k_dense_replace", make_node(first));
  map.set("moe_layer_freq", make_node(std::int64_t{1}));
  map.set("aux_loss_alpha", make_node(c.aux_loss));
  map.set("seq_aux", make_node(true));
}

}  // namespace

const Family& deepseek_v2_family() {
  static const Family family{"deepseek_v2", "DeepseekV2ForCausalLM", read, write};
  return family;
}

}  // namespace farskip
