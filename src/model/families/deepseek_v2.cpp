// SPDX-License-Identifier: Apache-2.0
// DeepSeek-V2 (arXiv 2405.04434): multi-head latent attention, shared and routed experts, the first layers
// dense. Field names are those of the hub's config.json.

#include "model/family.h"

namespace farskip {
namespace {

enum class TopK { greedy, group_limited_greedy };
constexpr Choice<TopK> kTopKNames[] = {{"greedy", TopK::greedy},
                                       {"group_limited_greedy", TopK::group_limited_greedy}};

ModelConfig read(Reader& r) {
  ModelConfig c;
  read_common(r, c);
  read_latent_attention(r, c);
  for (const char* key : {"qk_norm", "use_qk_norm", "qk_layernorm"})
    r.require_value(key, false, "this family normalises the latents");
  for (const char* key : {"rope_interleave", "rope_interleaved"})
    r.require_value(key, true, "this family rotates pairs of neighbours");
  c.attention_bias = r.boolean("attention_bias", false);
  c.mlp_bias = r.boolean("mlp_bias", false);
  read_deepseek_experts(r, c, 1.0);
  r.require_value("norm_topk_prob", false,
                  "public implementations of this family disagree on what true means");
  r.require_value("scoring_func", "softmax", "this family scores with softmax");
  const TopK method = r.choice("topk_method", kTopKNames, TopK::greedy);
  read_expert_groups(r, c, method == TopK::group_limited_greedy);
  read_fixed_choices(r, c);
  return c;
}

void write(const ModelConfig& c, ConfigNode& map) {
  write_common(c, map);
  write_latent_attention(c, map);
  write_deepseek_experts(c, map);
  map.set("norm_topk_prob", make_node(false));
  map.set("scoring_func", make_node("softmax"));
  const bool grouped = c.moe.num_groups > 1;
  map.set("topk_method", make_node(grouped ? "group_limited_greedy" : "greedy"));
  map.set("n_group", grouped ? make_node(c.moe.num_groups) : ConfigNode{});
  map.set("topk_group", grouped ? make_node(c.moe.top_groups) : ConfigNode{});
  write_deepseek_layers(c, map);
}

}  // namespace

const Family& deepseek_v2_family() {
  static const Family family{"deepseek_v2", "DeepseekV2ForCausalLM", read, write};
  return family;
}

}  // namespace farskip
