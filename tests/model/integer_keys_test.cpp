// SPDX-License-Identifier: Apache-2.0
// Every integer key of every family at the edges of the types that could hold it: a model is either refused,
// or has shapes whose sizes are numbers.
#include <limits>

#include "farskip/config/reader.h"
#include "farskip/model/model_config.h"
#include "farskip/model/parameters.h"
#include "support/catch.h"

namespace farskip {
namespace {

const char* const kSmallest[] = {
    "{family: deepseek_v2, vocab_size: 300, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2, "
    "intermediate_size: 64, kv_lora_rank: 16, q_lora_rank: 16, qk_nope_head_dim: 8, qk_rope_head_dim: 8, "
    "v_head_dim: 8, n_routed_experts: 4, num_experts_per_tok: 2, moe_intermediate_size: 16, "
    "n_shared_experts: 1}",
    "{family: qwen3_moe, vocab_size: 300, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2, "
    "num_key_value_heads: 2, head_dim: 8, intermediate_size: 64, num_experts: 4, num_experts_per_tok: 2, "
    "moe_intermediate_size: 16}",
    "{family: llama, vocab_size: 300, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2, "
    "num_key_value_heads: 2, head_dim: 8, intermediate_size: 64}",
    "{family: olmoe, vocab_size: 300, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2, "
    "num_key_value_heads: 2, intermediate_size: 64, num_experts: 4, num_experts_per_tok: 2}",
    "{family: deepseek_v3, vocab_size: 300, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2, "
    "intermediate_size: 64, kv_lora_rank: 16, q_lora_rank: 16, qk_nope_head_dim: 8, qk_rope_head_dim: 8, "
    "v_head_dim: 8, n_routed_experts: 4, num_experts_per_tok: 2, moe_intermediate_size: 16, "
    "n_shared_experts: 1}",
    "{family: llama4_text, vocab_size: 300, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2, "
    "num_key_value_heads: 2, head_dim: 8, intermediate_size: 16, intermediate_size_mlp: 64, "
    "num_local_experts: 4}"};

/// Bytes of all parameters in f32; nothing beyond 64 bits.
std::optional<std::int64_t> bytes_of(const ModelConfig& model) {
  std::int64_t sum = 0;
  for (const ParameterSpec& p : list_parameters(model)) {
    std::int64_t bytes = 4;
    for (const std::int64_t dim : p.shape.dims())
      if (dim <= 0 || __builtin_mul_overflow(bytes, dim, &bytes)) return std::nullopt;
    if (__builtin_add_overflow(sum, bytes, &sum)) return std::nullopt;
  }
  return sum;
}

TEST_CASE("an integer of a model is refused or makes shapes of a size that 64 bits hold") {
  for (const char* const text : kSmallest) {
    const ConfigNode smallest = parse_yaml_text(text, "model");
    ErrorList none;
    REQUIRE(bytes_of(read_model_section(smallest, none)));
    REQUIRE(none.report().empty());
    int num_keys = 0, num_refused = 0;
    for (const KnownKey& key : none.known_keys()) {
      if (!key.allowed.starts_with("integer")) continue;
      ++num_keys;
      for (const std::int64_t value :
           {std::int64_t{-1}, std::int64_t{0}, std::int64_t{1}, std::int64_t{65536}, std::int64_t{65538},
            (std::int64_t{1} << 31) - 1, std::int64_t{1} << 31, (std::int64_t{1} << 32) + 1,
            std::int64_t{1} << 62, std::numeric_limits<std::int64_t>::max()}) {
        INFO(key.path << ": " << value);
        ConfigNode section = smallest;
        section.set(key.path.substr(key.path.rfind('.') + 1), make_node(value));
        ErrorList errors;
        const ModelConfig model = read_model_section(section, errors);
        if (errors.empty())
          CHECK(bytes_of(model));
        else
          ++num_refused;
      }
    }
    CHECK(num_keys >= 10);
    CHECK(num_refused >= 2 * num_keys);
  }
}

}  // namespace
}  // namespace farskip
