// SPDX-License-Identifier: Apache-2.0
// Mixtral: grouped-query attention, routed experts in every layer, weights of the chosen ones made to sum to
// one. Field names are those of the hub's config.json; intermediate_size is an expert's.

#include "model/family.h"

namespace farskip {
namespace {

void read_experts(Reader& r, ModelConfig& c) {
  MoeConfig& moe = c.moe;
  read_expert_counts(r, c, "num_local_experts", 8, 2);
  read_softmax_routing(r, c);
  moe.expert_size = c.intermediate_size;
  moe.normalize = true;
  c.moe_layers.assign(static_cast<std::size_t>(c.num_layers), true);
  r.require_value("norm_topk_prob", true, "this family's weights sum to one");
}

ModelConfig read(Reader& r) {
  ModelConfig c;
  read_common(r, c, {.rms_norm_eps = 1e-5});
  read_grouped_query_attention(r, c, {.kv_heads = 8, .rope_theta = 1e6});
  if (const auto window = r.optional_integer("sliding_window", {.min = 1}))
    r.fail("sliding_window", fmt::format("{}: sliding-window attention is not built; null is", *window));
  read_experts(r, c);
  read_fixed_choices(r, c);
  return c;
}

void write(const ModelConfig& c, ConfigNode& map) {
  write_common(c, map);
  write_grouped_query_attention(c, map);
  map.set("sliding_window", ConfigNode{});
  write_rope(c.rope, map);
  map.set("num_local_experts", make_node(c.moe.num_experts));
  map.set("num_experts_per_tok", make_node(c.moe.top_k));
  map.set("router_aux_loss_coef", make_node(c.aux_loss));
}

}  // namespace

const Family& mixtral_family() {
  static const Family family{
      "mixtral", "MixtralForCausalLM", read, write, {"block_sparse_moe", "w1", "w3", "w2"}};
  return family;
}

}  // namespace farskip
