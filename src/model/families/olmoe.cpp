// SPDX-License-Identifier: Apache-2.0
// OLMoE (arXiv 2409.02060): grouped-query attention whose queries and keys are normalised over all heads
// together, then cut; routed experts in every layer, without renormalisation as a rule. Field names are those
// of the hub's config.json; intermediate_size is an expert's.

#include "model/family.h"

namespace farskip {
namespace {

constexpr std::int64_t kClassEndToken = 50279;

void read_experts(Reader& r, ModelConfig& c) {
  MoeConfig& moe = c.moe;
  read_expert_counts(r, c, "num_experts", 64, 8);
  moe.normalize = r.boolean("norm_topk_prob", false);
  read_softmax_routing(r, c, 0.01);
  moe.expert_size = c.intermediate_size;
  c.moe_layers.assign(static_cast<std::size_t>(c.num_layers), true);
}

ModelConfig read(Reader& r) {
  ModelConfig c;
  read_common(r, c, {.rms_norm_eps = 1e-5, .end_token = kClassEndToken});
  c.gqa.qk_norm = QkNorm::projection;
  read_grouped_query_attention(r, c, {.kv_heads = c.num_heads});
  c.gqa.clip = r.optional_real("clip_qkv", {.min = 0.0, .above_min = true}).value_or(0.0);
  c.attention_bias = r.boolean("attention_bias", false);
  read_experts(r, c);
  read_fixed_choices(r, c);
  return c;
}

void write(const ModelConfig& c, ConfigNode& map) {
  write_common(c, map);
  write_grouped_query_attention(c, map);
  map.set("clip_qkv", c.gqa.clip > 0 ? make_node(c.gqa.clip) : ConfigNode{});
  write_rope(c.rope, map);
  map.set("num_experts", make_node(c.moe.num_experts));
  map.set("num_experts_per_tok", make_node(c.moe.top_k));
  map.set("norm_topk_prob", make_node(c.moe.normalize));
  map.set("router_aux_loss_coef", make_node(c.aux_loss));
}

}  // namespace

const Family& olmoe_family() {
  static const Family family{.name = "olmoe",
                             .architecture = "OlmoeForCausalLM",
                             .read = read,
                             .write = write,
                             .class_end_token = kClassEndToken};
  return family;
}

}  // namespace farskip
