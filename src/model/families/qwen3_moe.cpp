// SPDX-License-Identifier: Apache-2.0
// Qwen3-MoE: grouped-query attention with per-head query/key norms, routed experts only, dense layers
// where decoder_sparse_step or mlp_only_layers say so. Field names are those of the hub's config.json.

#include <algorithm>

#include "model/family.h"

namespace farskip {
namespace {

void read_attention(Reader& r, ModelConfig& c) {
  c.gqa.qk_norm = QkNorm::head;
  read_grouped_query_attention(r, c, {.kv_heads = 4});
  // Without use_sliding_window neither has an effect.
  for (const char* key : {"sliding_window", "max_window_layers"}) r.ignore(key);
}

void read_experts(Reader& r, ModelConfig& c) {
  MoeConfig& moe = c.moe;
  read_expert_counts(r, c, "num_experts", 0, 8);
  moe.expert_size = r.integer("moe_intermediate_size", {.min = 1, .max = 1 << 22});
  moe.normalize = r.boolean("norm_topk_prob", false);
  read_softmax_routing(r, c);
  const std::int64_t step = r.integer("decoder_sparse_step", {.min = 1}, 1);
  const auto dense = r.integers("mlp_only_layers", {.min = 0, .max = c.num_layers - 1}, {}, {});
  for (std::int64_t layer = 0; layer < c.num_layers; ++layer)
    c.moe_layers.push_back((layer + 1) % step == 0 &&
                           std::find(dense.begin(), dense.end(), layer) == dense.end());
  r.require_value("first_k_dense_replace", 0, "mlp_only_layers names the dense layers of this family");
  r.require_value("moe_layer_freq", 1, "decoder_sparse_step says it in this family");
}

ModelConfig read(Reader& r) {
  ModelConfig c;
  read_common(r, c);
  read_attention(r, c);
  c.attention_bias = r.boolean("attention_bias", false);
  read_experts(r, c);
  read_fixed_choices(r, c);
  return c;
}

void write(const ModelConfig& c, ConfigNode& map) {
  write_common(c, map);
  write_grouped_query_attention(c, map);
  map.set("use_sliding_window", make_node(false));
  map.set("sliding_window", ConfigNode{});
  write_rope(c.rope, map);
  map.set("num_experts", make_node(c.moe.num_experts));
  map.set("num_experts_per_tok", make_node(c.moe.top_k));
  map.set("moe_intermediate_size", make_node(c.moe.expert_size));
  map.set("norm_topk_prob", make_node(c.moe.normalize));
  map.set("decoder_sparse_step", make_node(std::int64_t{1}));
  std::vector<ConfigNode> dense;
  for (std::size_t layer = 0; layer < c.moe_layers.size(); ++layer)
    if (!c.moe_layers[layer]) dense.push_back(make_node(static_cast<std::int64_t>(layer)));
  map.set("mlp_only_layers", make_list(std::move(dense)));
  map.set("router_aux_loss_coef", make_node(c.aux_loss));
}

}  // namespace

const Family& qwen3_moe_family() {
  static const Family family{"qwen3_moe", "Qwen3MoeForCausalLM", read, write};
  return family;
}

}  // namespace farskip
