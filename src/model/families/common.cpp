// SPDX-License-Identifier: Apache-2.0
// Fields that the families share.

#include <algorithm>
#include <cmath>

#include "model/family.h"

namespace farskip {
namespace {

/// Modes of the paper's own config keys, which have no names for other wirings.
bool is_farskip_mode(FarSkipMode mode) {
  return mode == FarSkipMode::attention || mode == FarSkipMode::mlp || mode == FarSkipMode::full;
}

/// False where the config names no wiring.
bool read_wiring(Reader& r, FarSkipConfig& wiring) {
  const auto other = r.optional_string("farskip_wiring");
  const bool farskip = r.boolean("farskip", false), attention_only = r.boolean("attn_only_farskip", false),
             mlp_only = r.boolean("mlp_only_farskip", false);
  if (!farskip && (attention_only || mlp_only))
    r.fail(attention_only ? "attn_only_farskip" : "mlp_only_farskip",
           "farskip is not set; add farskip: true, or remove this key");
  if (farskip) {
    if (other) r.fail("farskip_wiring", "farskip is set too; leave one of them");
    if (attention_only && mlp_only)
      r.fail("mlp_only_farskip", "attn_only_farskip is set too; leave one of them");
    wiring.mode = attention_only ? FarSkipMode::attention : mlp_only ? FarSkipMode::mlp : FarSkipMode::full;
    return true;
  }
  if (!other) return false;
  const auto parsed = parse_wiring_name(*other);
  if (parsed)
    wiring = *parsed;
  else
    r.fail("farskip_wiring", fmt::format("\"{}\" is not known; allowed: {}; delay as delay:1 to delay:{}",
                                         *other, list_names(farskip_mode_names), kMaxDelay));
  return true;
}

void read_farskip(Reader& r, ModelConfig& c) {
  if (!read_wiring(r, c.farskip)) {
    for (const char* key : {"farskip_layers", "farskip_start_idx", "farskip_end_idx"}) r.ignore(key);
    return;
  }
  const auto layers = r.integers("farskip_layers", {.min = 0, .max = c.num_layers - 1}, {}, {});
  const std::int64_t first = r.integer("farskip_start_idx", {.min = 0}, 0);
  const std::int64_t last = std::min(r.integer("farskip_end_idx", {.min = 0}, 10000), c.num_layers - 1);
  if (first > last)
    r.fail("farskip_start_idx", fmt::format("{} is behind the last rewired layer, {}", first, last));
  for (const std::int64_t layer : layers)
    if (layer < first || layer > last)
      r.fail("farskip_layers", fmt::format("layer {} is outside of farskip_start_idx to farskip_end_idx, {} "
                                           "to {}; leave the list or the range",
                                           layer, first, last));
  if (!layers.empty())
    c.farskip.layers = {LayerSelection::Kind::list, 0, 0, layers};
  else if (first > 0 || last < c.num_layers - 1)
    c.farskip.layers = {LayerSelection::Kind::range, first, last, {}};
}

void write_farskip(const ModelConfig& c, ConfigNode& map) {
  if (c.farskip.mode == FarSkipMode::off) return;
  if (is_farskip_mode(c.farskip.mode)) {
    map.set("farskip", make_node(true));
    map.set("attn_only_farskip", make_node(c.farskip.mode == FarSkipMode::attention));
    map.set("mlp_only_farskip", make_node(c.farskip.mode == FarSkipMode::mlp));
  } else {
    map.set("farskip_wiring", make_node(wiring_name(c.farskip)));
  }
  const LayerSelection& layers = c.farskip.layers;
  const bool range = layers.kind == LayerSelection::Kind::range;
  map.set("farskip_start_idx", make_node(range ? layers.first : 0));
  map.set("farskip_end_idx", make_node(range ? layers.last : c.num_layers - 1));
  if (layers.kind != LayerSelection::Kind::list) return;
  std::vector<ConfigNode> list;
  for (const std::int64_t layer : layers.layers) list.push_back(make_node(layer));
  map.set("farskip_layers", make_list(std::move(list)));
}

}  // namespace

void read_common(Reader& r, ModelConfig& c, const CommonDefaults& defaults) {
  c.vocab_size = r.integer("vocab_size", {.min = 2, .max = 1 << 24});
  c.hidden_size = r.integer("hidden_size", {.min = 1, .max = 1 << 20});
  c.num_layers = r.integer("num_hidden_layers", {.min = 1, .max = 1024});
  c.num_heads = r.integer("num_attention_heads", {.min = 1, .max = 4096});
  c.intermediate_size = r.integer("intermediate_size", {.min = 1, .max = 1 << 22}, 4 * c.hidden_size);
  c.max_positions = r.integer("max_position_embeddings", {.min = 1}, 4096);
  c.rms_norm_eps = r.real("rms_norm_eps", {.min = 0.0, .above_min = true}, defaults.rms_norm_eps);
  c.initializer_range = r.real("initializer_range", {.min = 0.0, .above_min = true}, 0.02);
  c.tie_embeddings = r.boolean("tie_word_embeddings", false);
  c.bos_token = r.optional_integer("bos_token_id", {.min = 0});
  if (const ConfigNode* eos = r.take("eos_token_id", "integer or list of integers")) {
    // One id or several; a list reads through the same checks.
    ConfigNode map;
    const auto& class_token = defaults.end_token;
    const bool is_class_token = class_token && eos->text == std::to_string(*class_token);
    if (is_class_token && r.is_foreign() && r.sound("vocab_size") && *class_token >= c.vocab_size)
      map.set("eos_token_id", make_list({}));  // the vocabulary is smaller: nobody has chosen this one
    else
      map.set("eos_token_id", eos->kind == ConfigNode::Kind::list ? *eos : make_list({*eos}));
    Reader list(map, r.errors(), "");
    IntegerRange ids{.min = 0};
    if (r.sound("vocab_size") && c.vocab_size > 0) ids.max = c.vocab_size - 1;
    c.eos_tokens = list.integers("eos_token_id", ids, {}, {});
  }
  read_farskip(r, c);
}

void read_grouped_query_attention(Reader& r, ModelConfig& c, const GqaDefaults& defaults) {
  c.gqa.kv_heads = r.integer("num_key_value_heads", {.min = 1, .max = 4096}, defaults.kv_heads);
  const std::int64_t head_dim = defaults.head_dim > 0 ? defaults.head_dim : c.hidden_size / c.num_heads;
  c.gqa.head_dim = r.optional_integer("head_dim", {.min = 2, .max = 1 << 16})
                       .value_or(std::max<std::int64_t>(head_dim, 2));
  if (r.sound("num_key_value_heads") && c.num_heads % c.gqa.kv_heads != 0)
    r.fail("num_key_value_heads",
           fmt::format("{} does not divide {} attention heads", c.gqa.kv_heads, c.num_heads));
  if (c.gqa.head_dim % 2 != 0) r.fail("head_dim", "rotated pairs need an even size");
  for (const char* key : {"rope_interleave", "rope_interleaved"})
    r.require_value(key, false, "this family rotates halves");
  const bool normalises = c.gqa.qk_norm != QkNorm::none;
  for (const char* key : {"qk_norm", "use_qk_norm", "qk_layernorm"})
    r.require_value(key, normalises,
                    normalises ? "this family normalises queries and keys"
                               : "this family does not normalise queries and keys");
  c.rope = read_rope(r, c.max_positions, defaults.rope_theta);
  c.softmax_scale = 1.0 / std::sqrt(static_cast<double>(c.gqa.head_dim));
}

void write_grouped_query_attention(const ModelConfig& c, ConfigNode& map) {
  map.set("num_key_value_heads", make_node(c.gqa.kv_heads));
  map.set("head_dim", make_node(c.gqa.head_dim));
}

void read_dense_layers(ModelConfig& c) {
  c.moe_layers.assign(static_cast<std::size_t>(c.num_layers), false);
  c.aux_loss = 0.0;  // there is nothing to balance
}

void read_expert_counts(Reader& r, ModelConfig& c, std::string_view count_key, std::int64_t count,
                        std::int64_t top_k) {
  constexpr IntegerRange counts{.min = 1, .max = 4096}, choices{.min = 1, .max = 256};
  std::vector<std::string> others{"num_experts", "num_local_experts", "n_routed_experts"};
  std::erase(others, count_key);
  r.also_called(count_key, std::move(others));
  c.moe.num_experts = count > 0 ? r.integer(count_key, counts, count) : r.integer(count_key, counts);
  r.also_called("num_experts_per_tok", {"num_experts_per_token"});
  c.moe.top_k = r.integer("num_experts_per_tok", choices, top_k);
  if (r.sound(count_key) && r.sound("num_experts_per_tok") && c.moe.top_k > c.moe.num_experts)
    r.fail("num_experts_per_tok",
           fmt::format("{} experts per token, only {} there", c.moe.top_k, c.moe.num_experts));
}

void read_softmax_routing(Reader& r, ModelConfig& c, double aux_loss) {
  c.aux_loss = r.real("router_aux_loss_coef", {.min = 0.0}, aux_loss);
  for (const char* key : {"n_shared_experts", "num_shared_experts", "shared_expert_intermediate_size"})
    r.require_value(key, 0, "this family has no shared expert");
  r.require_value("scoring_func", "softmax", "this family scores with softmax");
  r.require_value("topk_method", "greedy", "this family chooses among all experts");
  r.require_value("routed_scaling_factor", 1.0, "this family does not scale its experts");
}

void write_common(const ModelConfig& c, ConfigNode& map) {
  const Family* family = find_family(c.family);
  const bool rewired = c.farskip.mode != FarSkipMode::off;
  // A model type of its own, so that nothing loads a rewired model silently with another wiring.
  const bool farskip = is_farskip_mode(c.farskip.mode);
  const bool named = farskip && family->names_farskip;
  const char* const type = named ? "" : farskip ? "farskip_" : rewired ? "rewired_" : "";
  const char* const architecture = named ? "" : farskip ? "FarSkip" : rewired ? "Rewired" : "";
  map.set("model_type", make_node(fmt::format("{}{}", type, family->hub_type())));
  map.set("architectures", make_list({make_node(architecture + family->architecture)}));
  map.set("vocab_size", make_node(c.vocab_size));
  map.set("hidden_size", make_node(c.hidden_size));
  map.set("num_hidden_layers", make_node(c.num_layers));
  map.set("num_attention_heads", make_node(c.num_heads));
  map.set("intermediate_size", make_node(c.intermediate_size));
  map.set("max_position_embeddings", make_node(c.max_positions));
  map.set("rms_norm_eps", make_node(c.rms_norm_eps));
  map.set("initializer_range", make_node(c.initializer_range));
  map.set("tie_word_embeddings", make_node(c.tie_embeddings));
  map.set("hidden_act", make_node("silu"));
  map.set("attention_bias", make_node(c.attention_bias));
  if (c.mlp_bias) map.set("mlp_bias", make_node(true));  // a family without such biases refuses the key
  map.set("attention_dropout", make_node(0.0));
  map.set("bos_token_id", c.bos_token ? make_node(*c.bos_token) : ConfigNode{});
  if (c.eos_tokens.empty()) {
    map.set("eos_token_id", ConfigNode{});
  } else if (c.eos_tokens.size() == 1) {
    map.set("eos_token_id", make_node(c.eos_tokens[0]));
  } else {
    std::vector<ConfigNode> list;
    for (const std::int64_t id : c.eos_tokens) list.push_back(make_node(id));
    map.set("eos_token_id", make_list(std::move(list)));
  }
  write_farskip(c, map);
}

}  // namespace farskip
