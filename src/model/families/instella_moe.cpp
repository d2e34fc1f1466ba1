// SPDX-License-Identifier: Apache-2.0
// Instella-MoE: DeepSeek-V3's shape with a gate on what attention heads give, made with FarSkip wiring, which
// its config names with the same keys as ours. Its model_type is DeepSeek-V3's; the architecture tells the
// two apart.

#include "model/family.h"

namespace farskip {
namespace {

ModelConfig read(Reader& r) {
  ModelConfig c = read_deepseek_v3(r);
  c.gated_attention = r.boolean("gated_attention", false);
  r.ignore("qk_layernorm");  // set in every config, and without effect: the latents have their norms
  read_fixed_choices(r, c);
  return c;
}

void write(const ModelConfig& c, ConfigNode& map) {
  write_deepseek_v3(c, map);
  if (c.farskip.mode == FarSkipMode::off) map.set("farskip", make_node(false));
  map.set("gated_attention", make_node(c.gated_attention));
  map.set("qk_layernorm", make_node(true));
}

}  // namespace

const Family& instella_moe_family() {
  static const Family family{.name = "instella_moe",
                             .architecture = "InstellaMoEForCausalLM",
                             .read = read,
                             .write = write,
                             .has_mtp = true,
                             .model_type = "deepseek_v3",
                             .names_farskip = true,
                             .is_in_transformers = false};
  return family;
}

}  // namespace farskip
