// SPDX-License-Identifier: Apache-2.0
// Qwen3: grouped-query attention with per-head query/key norms and a dense MLP in every layer. Field names
// are those of the hub's config.json.

#include "model/family.h"

namespace farskip {
namespace {

ModelConfig read(Reader& r) {
  ModelConfig c;
  read_common(r, c);
  c.gqa.qk_norm = QkNorm::head;
  read_grouped_query_attention(r, c, {.kv_heads = 32, .head_dim = 128});
  // Without use_sliding_window neither has an effect.
  for (const char* key : {"sliding_window", "max_window_layers"}) r.ignore(key);
  c.attention_bias = r.boolean("attention_bias", false);
  read_dense_layers(c);
  read_fixed_choices(r, c);
  return c;
}

void write(const ModelConfig& c, ConfigNode& map) {
  write_common(c, map);
  write_grouped_query_attention(c, map);
  map.set("use_sliding_window", make_node(false));
  map.set("sliding_window", ConfigNode{});
  write_rope(c.rope, map);
}

}  // namespace

const Family& qwen3_family() {
  static const Family family{.name = "qwen3",
                             .architecture = "Qwen3ForCausalLM",
                             .read = read,
                             .write = write,
                             .with_experts = "qwen3_moe"};
  return family;
}

}  // namespace farskip
