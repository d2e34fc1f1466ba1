// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a model family states: how its hub config is read and written. Names of tensors: parameters.h.

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "farskip/model/model_config.h"

namespace farskip {

/// How the hub calls the parts of an MLP: MODULE.{gate,up,down}_proj of a dense one, MODULE.ROUTER,
/// MODULE.SHARED.{gate,up,down}_proj and MODULE.experts.E.{gate,up,down} of a sparse one.
struct MlpNames {
  std::string module = "mlp", gate = "gate_proj", up = "up_proj", down = "down_proj", router = "gate",
              shared = "shared_experts";
  /// The hub holds all experts of a layer as MODULE.experts.{gate_up_proj,down_proj}, [in, out] each.
  bool packed_transposed = false;
};

struct Family {
  std::string name;          // model.family of a run configuration
  std::string architecture;  // architectures[0]
  /// Reads the family's fields; generic ones (vocab_size, …) included.
  ModelConfig (*read)(Reader& reader);
  /// Adds the family's fields to a map.
  void (*write)(const ModelConfig& config, ConfigNode& map);
  MlpNames mlp_names{};
  /// The family that has routed experts where this one has dense MLPs, and is like it otherwise; empty: none.
  std::string with_experts{};
  /// Its folders may have layers behind the last that predict further tokens (multi-token prediction). They
  /// are not built.
  bool has_mtp = false;
  /// A model of several kinds of input whose text part is of this family: its model_type and architecture.
  /// Its config has ours under text_config.
  std::string outer_name{}, outer_architecture{};
  /// Its config.json says this, if it is not the name: then the architecture tells it from the family of that
  /// name.
  std::string model_type{};
  /// The end token of its config class, which files of models have that a smaller vocabulary was given.
  std::optional<std::int64_t> class_end_token{};
  /// Its own configs name the modes of FarSkip, so that a rewired model needs no name of ours.
  bool names_farskip = false;
  /// The library has a class for it, which computes the standard wiring.
  bool is_in_transformers = true;

  std::string_view hub_type() const { return model_type.empty() ? name : model_type; }
};
/// More of them than any model has.
inline constexpr std::int64_t kMostMtpLayers = 8;

std::span<const Family> families();
/// nullptr for an unknown name.
const Family* find_family(std::string_view name);

const Family& deepseek_v2_family();
const Family& deepseek_v3_family();
const Family& instella_moe_family();
const Family& llama_family();
const Family& llama4_text_family();
const Family& mixtral_family();
const Family& olmoe_family();
const Family& qwen3_family();
const Family& qwen3_moe_family();

/// A family's config class takes these where the file says nothing. `end_token`: Family::class_end_token.
struct CommonDefaults {
  double rms_norm_eps = 1e-6;
  std::optional<std::int64_t> end_token{};
};
/// Fields that every family shares. The others are read after them.
void read_common(Reader& reader, ModelConfig& config, const CommonDefaults& defaults = {});
void write_common(const ModelConfig& config, ConfigNode& map);
/// A family's config class takes these where the file says nothing. head_dim 0: the heads share the hidden
/// size.
struct GqaDefaults {
  std::int64_t kv_heads = 1, head_dim = 0;
  double rope_theta = 10000.0;
};
/// num_key_value_heads and head_dim, RoPE on halves, and the scale of the scores. Queries and keys are
/// normalised as config.gqa says, which the caller has set; a key that says otherwise is refused.
void read_grouped_query_attention(Reader& reader, ModelConfig& config, const GqaDefaults& defaults);
void write_grouped_query_attention(const ModelConfig& config, ConfigNode& map);
/// Multi-head latent attention with its rotary embedding (of neighbours; the caller may set another form) and
/// the scale of the scores.
void read_latent_attention(Reader& reader, ModelConfig& config);
void write_latent_attention(const ModelConfig& config, ConfigNode& map);
/// The experts of DeepSeek-V2 and V3 have this in common: sizes, counts, scale (`scaling` where the file does
/// not say), and which layers have them.
void read_deepseek_experts(Reader& reader, ModelConfig& config, double scaling);
/// A family's config class takes these where a file of the hub says nothing. In a run there are no groups
/// then.
struct GroupDefaults {
  std::int64_t groups = 1, top_groups = 1;
};
/// `choose_groups`: n_group and topk_group limit the choice, else they are read and have no effect.
void read_expert_groups(Reader& reader, ModelConfig& config, bool choose_groups,
                        const GroupDefaults& defaults = {});
void write_deepseek_experts(const ModelConfig& config, ConfigNode& map);
/// DeepSeek-V3's fields, for it and for families of its shape; without read_fixed_choices.
ModelConfig read_deepseek_v3(Reader& reader);
void write_deepseek_v3(const ModelConfig& config, ConfigNode& map);
/// What is written behind the routing.
void write_deepseek_layers(const ModelConfig& config, ConfigNode& map);
/// Every layer has a dense MLP and none has experts.
void read_dense_layers(ModelConfig& config);
/// Reads the number of experts under `count_key` (or another family's name of it) and num_experts_per_tok,
/// which is at most that. `count` 0: the file has to say it.
void read_expert_counts(Reader& reader, ModelConfig& config, std::string_view count_key, std::int64_t count,
                        std::int64_t top_k);
/// Refuses what names another routing than by softmax over all experts, without shared ones; reads the
/// coefficient of the balance loss, which is `aux_loss` where the file does not say.
void read_softmax_routing(Reader& reader, ModelConfig& config, double aux_loss = 0.001);
/// Keys that name what every family builds anyway: accepted with that value and refused with another. Keys
/// that change nothing a model computes are accepted as they are. Call it after all that a family reads.
void read_fixed_choices(Reader& reader, const ModelConfig& config);
/// Unread keys of a hub file that are notes of the program that wrote it (returned, for one notice), or null.
std::vector<std::string> pass_over_foreign_notes(Reader& reader);
/// rope_parameters (newer), rope_scaling and rope_theta (hub files). Where they differ, that is a mistake.
/// Scaled positions were first learnt for `max_positions`, where the file does not say for how many.
RopeConfig read_rope(Reader& reader, std::int64_t max_positions, double default_theta = 10000.0);
void write_rope(const RopeConfig& rope, ConfigNode& map);

}  // namespace farskip
