// SPDX-License-Identifier: Apache-2.0
// DeepSeek-V3 (arXiv 2412.19437) and Moonlight: latent attention, shared and routed experts chosen by sigmoid
// scores and a bias per expert that is not trained. Field names are those of the hub's config.json.

#include "model/family.h"

namespace farskip {
namespace {

/// Layers that predict further tokens are no part of what is built; their tensors are passed over.
void read_mtp(Reader& r, const ModelConfig& c) {
  r.also_called("num_nextn_predict_layers", {"num_mtp_layers"});
  if (!r.is_foreign()) return;  // a run that asks for them is refused
  const auto layers =
      r.optional_integer("num_nextn_predict_layers", {.min = 0, .max = kMostMtpLayers}).value_or(0);
  if (layers > 0)
    r.errors().add_notice(fmt::format(
        "num_nextn_predict_layers is {}: layers that predict further tokens are not built, and their tensors "
        "(model.layers.{}.*) are passed over",
        layers, c.num_layers));
}

}  // namespace

ModelConfig read_deepseek_v3(Reader& r) {
  ModelConfig c;
  read_common(r, c);
  read_latent_attention(r, c);
  r.also_called("rope_interleave", {"rope_interleaved"});
  c.rope.interleaved = r.boolean("rope_interleave", true);
  read_deepseek_experts(r, c, 2.5);
  c.moe.score = ops::ScoreFunction::sigmoid;
  c.moe.group_score = ops::GroupScore::top2_sum;
  c.moe.selection_bias = true;
  c.moe.normalize = r.boolean("norm_topk_prob", true);
  r.require_value("scoring_func", "sigmoid", "this family scores with sigmoid");
  r.require_value("topk_method", "noaux_tc", "this family chooses by scores and a bias");
  read_expert_groups(r, c, true, {.groups = 8, .top_groups = 4});
  read_mtp(r, c);
  return c;
}

void write_deepseek_v3(const ModelConfig& c, ConfigNode& map) {
  write_common(c, map);
  write_latent_attention(c, map);
  map.set("rope_interleave", make_node(c.rope.interleaved));
  write_deepseek_experts(c, map);
  map.set("norm_topk_prob", make_node(c.moe.normalize));
  map.set("scoring_func", make_node("sigmoid"));
  map.set("topk_method", make_node("noaux_tc"));
  map.set("n_group", make_node(c.moe.num_groups));
  map.set("topk_group", make_node(c.moe.top_groups));
  write_deepseek_layers(c, map);
  map.set("num_nextn_predict_layers", make_node(std::int64_t{0}));
}

namespace {

ModelConfig read(Reader& r) {
  ModelConfig c = read_deepseek_v3(r);
  c.attention_bias = r.boolean("attention_bias", false);
  for (const char* key : {"qk_norm", "use_qk_norm", "qk_layernorm"})
    r.require_value(key, false, "this family normalises the latents");
  read_fixed_choices(r, c);
  return c;
}

}  // namespace

const Family& deepseek_v3_family() {
  static const Family family{.name = "deepseek_v3",
                             .architecture = "DeepseekV3ForCausalLM",
                             .read = read,
                             .write = write_deepseek_v3,
                             .has_mtp = true};
  return family;
}

}  // namespace farskip
