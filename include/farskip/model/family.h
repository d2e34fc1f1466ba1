// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a model family states: how its hub config is read and written. Names of tensors: parameters.h.

#include <span>
#include <string>
#include <vector>

#include "farskip/model/model_config.h"

namespace farskip {

/// How the hub calls the parts of a routed sub-block: MODULE.gate, MODULE.experts.E.{gate,up,down}.
struct ExpertNames {
  std::string module = "mlp", gate = "gate_proj", up = "up_proj", down = "down_proj";
};

struct Family {
  std::string name;          // model.family of a run configuration, model_type of its config.json
  std::string architecture;  // architectures[0]
  /// Reads the family's fields; generic ones (vocab_size, …) included.
  ModelConfig (*read)(Reader& reader);
  /// Adds the family's fields to a map.
  void (*write)(const ModelConfig& config, ConfigNode& map);
  ExpertNames expert_names{};
  /// The family that has routed experts where this one has dense MLPs, and is like it otherwise; empty: none.
  std::string with_experts{};
};

std::span<const Family> families();
/// nullptr for an unknown name.
const Family* find_family(std::string_view name);

const Family& deepseek_v2_family();
const Family& llama_family();
const Family& mixtral_family();
const Family& qwen3_family();
const Family& qwen3_moe_family();

/// Fields that every family shares.
void read_common(Reader& reader, ModelConfig& config);
void write_common(const ModelConfig& config, ConfigNode& map);
/// What a family's config class takes where the file says nothing. head_dim 0: the heads share the hidden
/// size.
struct GqaDefaults {
  std::int64_t kv_heads = 1, head_dim = 0;
};
/// num_key_value_heads and head_dim, RoPE on halves, and the scale of the scores. Queries and keys are
/// normalised as config.gqa says, which the caller has set; a key that says otherwise is refused.
void read_grouped_query_attention(Reader& reader, ModelConfig& config, const GqaDefaults& defaults);
void write_grouped_query_attention(const ModelConfig& config, ConfigNode& map);
/// Every layer has a dense MLP and none has experts.
void read_dense_layers(ModelConfig& config);
/// Refuses what names another routing than by softmax over all experts, without shared ones; reads the
/// coefficient of the balance loss. Call it after the number of experts, under `count_key`, and
/// num_experts_per_tok.
void read_softmax_routing(Reader& reader, ModelConfig& config, std::string_view count_key);
/// Keys that name what every family builds anyway: accepted with that value and refused with another. Keys
/// that change nothing a model computes are accepted as they are. Call it after all that a family reads.
void read_fixed_choices(Reader& reader, const ModelConfig& config);
/// Unread keys of a hub file that are notes of the program that wrote it (returned, for one notice), or null.
std::vector<std::string> pass_over_foreign_notes(Reader& reader);
/// rope_parameters (newer), rope_scaling and rope_theta (hub files). Where they differ, that is a mistake.
RopeConfig read_rope(Reader& reader);
void write_rope(const RopeConfig& rope, ConfigNode& map);

}  // namespace farskip
