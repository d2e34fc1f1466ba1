// SPDX-License-Identifier: Apache-2.0
// Llama 1 to 3 and models of their shape (SmolLM2): grouped-query attention and a dense MLP in every layer.
// Field names are those of the hub's config.json.

#include "model/family.h"

namespace farskip {
namespace {

ModelConfig read(Reader& r) {
  ModelConfig c;
  read_common(r, c);
  read_grouped_query_attention(r, c, {.kv_heads = c.num_heads});
  c.attention_bias = r.boolean("attention_bias", false);
  c.mlp_bias = r.boolean("mlp_bias", false);
  read_dense_layers(c);
  read_fixed_choices(r, c);
  return c;
}

void write(const ModelConfig& c, ConfigNode& map) {
  write_common(c, map);
  write_grouped_query_attention(c, map);
  map.set("mlp_bias", make_node(c.mlp_bias));
  write_rope(c.rope, map);
}

}  // namespace

const Family& llama_family() {
  static const Family family{.name = "llama",
                             .architecture = "LlamaForCausalLM",
                             .read = read,
                             .write = write,
                             .with_experts = "mixtral"};
  return family;
}

}  // namespace farskip
