// SPDX-License-Identifier: Apache-2.0
// The text part of Llama 4 (Scout, Maverick): one routed expert and a shared one per token, weights that
// multiply what an expert reads, layers without positions between chunked ones. Field names are those of
// text_config in the hub's config.json; intermediate_size is an expert's.

#include <algorithm>

#include "model/family.h"

namespace farskip {
namespace {

/// Layers without positions: no_rope_layers has a 1 for every layer that is rotated; empty, as on the hub, or
/// absent: every no_rope_layer_interval-th has none.
void read_rotated_layers(Reader& r, ModelConfig& c) {
  const auto flags = r.integers("no_rope_layers", {.min = 0, .max = 1}, {}, {});
  const std::int64_t interval = r.integer("no_rope_layer_interval", {.min = 1}, 4);
  if (!flags.empty() && static_cast<std::int64_t>(flags.size()) != c.num_layers)
    r.fail("no_rope_layers", fmt::format("{} entries for {} layers", flags.size(), c.num_layers));
  for (std::int64_t layer = 0; layer < c.num_layers; ++layer)
    c.long_text.rotated.push_back(flags.size() == static_cast<std::size_t>(c.num_layers)
                                      ? flags[static_cast<std::size_t>(layer)] == 1
                                      : (layer + 1) % interval != 0);
}

/// true, false, or, as first published, a number.
bool read_temperature_tuning(Reader& r) {
  const ConfigNode* const node = r.take("attn_temperature_tuning", "true, false", "true");
  if (node == nullptr || node->text == "true" || node->text == "1" || node->text == "4") return true;
  if (node->text != "false" && node->text != "0")
    r.fail("attn_temperature_tuning", fmt::format("{}; allowed: true, false", quote_for_message(node->text)));
  return false;
}

void read_attention(Reader& r, ModelConfig& c) {
  if (r.boolean("use_qk_norm", true)) c.gqa.qk_norm = QkNorm::rotated;
  read_grouped_query_attention(r, c, {.kv_heads = 8, .head_dim = 128, .rope_theta = 500000.0});
  c.rope.interleaved = true;
  read_rotated_layers(r, c);
  const std::vector<const ConfigNode*> unread = r.unread();
  const bool given = std::any_of(unread.begin(), unread.end(),
                                 [](const ConfigNode* node) { return node->key == "attention_chunk_size"; });
  c.long_text.chunk =  // null: attention is not chunked
      r.optional_integer("attention_chunk_size", {.min = 1}).value_or(given ? 0 : 8192);
  c.long_text.temperature_floor = r.integer("floor_scale", {.min = 1}, 8192);
  const double scale = r.real("attn_scale", {.min = 0.0}, 0.1);
  c.long_text.temperature_scale = read_temperature_tuning(r) ? scale : 0.0;
  const std::vector<std::string> types = r.strings("layer_types");
  for (std::size_t layer = 0; layer < types.size() && r.sound("no_rope_layers"); ++layer) {
    const bool chunked = c.long_text.chunk > 0 && layer < c.long_text.rotated.size() &&
                         c.long_text.is_rotated(static_cast<std::int64_t>(layer));
    const char* const expected = chunked ? "chunked_attention" : "full_attention";
    if (types[layer] != expected)
      r.fail("layer_types",
             fmt::format("layer {} is '{}' here, and other keys make it {}", layer, types[layer], expected));
  }
}

void read_experts(Reader& r, ModelConfig& c) {
  MoeConfig& moe = c.moe;
  read_expert_counts(r, c, "num_local_experts", 16, 1);
  moe.expert_size = moe.shared_size = c.intermediate_size;
  c.intermediate_size = r.integer("intermediate_size_mlp", {.min = 1, .max = 1 << 22}, 16384);
  moe.score = ops::ScoreFunction::sigmoid;
  moe.by_logits = moe.scales_input = true;
  c.aux_loss = r.real("router_aux_loss_coef", {.min = 0.0}, 0.001);
  const std::int64_t step = r.integer("interleave_moe_layer_step", {.min = 1}, 1);
  c.moe_layers.assign(static_cast<std::size_t>(c.num_layers), false);
  std::vector<std::int64_t> layers;
  if (r.has("moe_layers"))
    layers = r.integers("moe_layers", {.min = 0, .max = c.num_layers - 1}, {}, {});
  else
    for (std::int64_t layer = step - 1; layer < c.num_layers; layer += step) layers.push_back(layer);
  for (const std::int64_t layer : layers) c.moe_layers[static_cast<std::size_t>(layer)] = true;
}

ModelConfig read(Reader& r) {
  ModelConfig c;
  read_common(r, c, {.rms_norm_eps = 1e-5});
  read_attention(r, c);
  c.attention_bias = r.boolean("attention_bias", false);
  read_experts(r, c);
  read_fixed_choices(r, c);
  return c;
}

void write(const ModelConfig& c, ConfigNode& map) {
  write_common(c, map);
  map.set("intermediate_size", make_node(c.moe.expert_size));
  map.set("intermediate_size_mlp", make_node(c.intermediate_size));
  write_grouped_query_attention(c, map);
  map.set("use_qk_norm", make_node(c.gqa.qk_norm == QkNorm::rotated));
  write_rope(c.rope, map);
  const LongTextConfig& text = c.long_text;
  std::vector<ConfigNode> rotated, sparse;
  for (const bool flag : text.rotated) rotated.push_back(make_node(static_cast<std::int64_t>(flag)));
  map.set("no_rope_layers", make_list(std::move(rotated)));
  map.set("attention_chunk_size", text.chunk > 0 ? make_node(text.chunk) : ConfigNode{});
  map.set("attn_temperature_tuning", make_node(text.temperature_scale > 0));
  map.set("floor_scale", make_node(text.temperature_floor));
  map.set("attn_scale", make_node(text.temperature_scale));
  map.set("num_local_experts", make_node(c.moe.num_experts));
  map.set("num_experts_per_tok", make_node(c.moe.top_k));
  for (std::size_t layer = 0; layer < c.moe_layers.size(); ++layer)
    if (c.moe_layers[layer]) sparse.push_back(make_node(static_cast<std::int64_t>(layer)));
  map.set("moe_layers", make_list(std::move(sparse)));
  map.set("router_aux_loss_coef", make_node(c.aux_loss));
}

}  // namespace

const Family& llama4_text_family() {
  static const Family family{.name = "llama4_text",
                             .architecture = "Llama4ForCausalLM",
                             .read = read,
                             .write = write,
                             .mlp_names = {.module = "feed_forward",
                                           .router = "router",
                                           .shared = "shared_expert",
                                           .packed_transposed = true},
                             .outer_name = "llama4",
                             .outer_architecture = "Llama4ForConditionalGeneration"};
  return family;
}

}  // namespace farskip
