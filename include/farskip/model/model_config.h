// SPDX-License-Identifier: Apache-2.0
#pragma once
// A model's architecture as typed values, the same for every family. Families differ in how their hub
// config and tensor names map to this (src/model/families/), not in what is built from it.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "farskip/config/reader.h"
#include "farskip/config/run_config.h"
#include "farskip/ops/ops.h"

namespace farskip {

/// Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values from one low-rank latent, plus a
/// rotated key part that all heads share.
struct MlaConfig {
  std::int64_t q_lora_rank = 0;  // 0: queries straight from the hidden state
  std::int64_t kv_lora_rank = 0;
  std::int64_t nope_dim = 0, rope_dim = 0, v_dim = 0;
  /// Of the norms of the latents: every public implementation leaves their class's default, whatever
  /// rms_norm_eps is.
  static constexpr double kNormEps = 1e-6;
  bool operator==(const MlaConfig&) const = default;
};

/// RMSNorm of queries and keys.
enum class QkNorm : std::uint8_t {
  none,
  head,        // of each head, before rotation (Qwen3)
  projection,  // of all heads together, before rotation (OLMoE)
  rotated,     // of each head of rotated layers, after rotation, without a weight (Llama 4)
};

/// Grouped-query attention.
struct GqaConfig {
  std::int64_t kv_heads = 0, head_dim = 0;
  QkNorm qk_norm = QkNorm::none;
  double clip = 0.0;  // > 0: queries, keys and values are cut to [-clip, clip], after the norm
  bool operator==(const GqaConfig&) const = default;
};

/// Layers of two kinds, for long texts (Llama 4): rotated ones, whose attention stays within chunks of the
/// text, and others, without positions, whose attention reaches everything before.
struct LongTextConfig {
  std::vector<bool> rotated;  // per layer; empty: all of them
  std::int64_t chunk = 0;     // tokens, of rotated layers; 0: the whole text
  // Temperature of queries that are not rotated (ops::attention_temperature). Scale 0: none.
  std::int64_t temperature_floor = 1;
  double temperature_scale = 0.0;
  bool is_rotated(std::int64_t layer) const {
    return rotated.empty() || rotated[static_cast<std::size_t>(layer)];
  }
  bool operator==(const LongTextConfig&) const = default;
};

struct RopeConfig {
  double theta = 10000.0;
  bool interleaved = false;
  ops::RopeScaling scaling = ops::RopeScaling::none;
  double factor = 1.0;
  std::int64_t original_positions = 0;
  double beta_fast = 32.0, beta_slow = 1.0;   // llama3 calls them high_freq_factor and low_freq_factor
  double mscale = 0.0, mscale_all_dim = 0.0;  // 0: not given
  double attention_factor = 1.0;              // multiplies cos and sin
  bool operator==(const RopeConfig&) const = default;
};

struct MoeConfig {
  std::int64_t num_experts = 0, top_k = 0;
  std::int64_t expert_size = 0;  // I of a routed expert
  std::int64_t shared_size = 0;  // I of the shared expert; 0: none
  ops::ScoreFunction score = ops::ScoreFunction::softmax;
  ops::GroupScore group_score = ops::GroupScore::max;
  std::int64_t num_groups = 1, top_groups = 1;
  bool selection_bias = false;  // a bias per expert, not trained, that takes part in the choice only
  bool normalize = false;
  double scaling = 1.0;
  bool by_logits = false;     // the choice is by logits, not by the scores made of them
  bool scales_input = false;  // weights multiply what experts read, not what they give (Llama 4)
  bool operator==(const MoeConfig&) const = default;
};

struct ModelConfig {
  std::string family;  // "deepseek_v2", "llama", …
  std::int64_t vocab_size = 0, hidden_size = 0, num_layers = 0, num_heads = 0;
  std::int64_t intermediate_size = 0;  // of dense layers
  std::int64_t max_positions = 0;
  double rms_norm_eps = 1e-6, initializer_range = 0.02;
  bool tie_embeddings = false;
  std::optional<MlaConfig> mla;  // otherwise gqa
  GqaConfig gqa;
  /// Projections of attention add a bias: all of grouped queries, and of latent attention those that read the
  /// hidden state down to a latent, and the last.
  bool attention_bias = false;
  bool mlp_bias = false;  // projections of dense MLPs and shared experts add one; of routed experts none
  bool gated_attention = false;  // what heads give is multiplied by a sigmoid gate of what they read
  LongTextConfig long_text;
  RopeConfig rope;
  double softmax_scale = 1.0;
  MoeConfig moe;
  std::vector<bool> moe_layers;  // per layer: routed experts (true) or a dense MLP
  std::optional<std::int64_t> bos_token;
  std::vector<std::int64_t> eos_tokens;
  double aux_loss = 0.001;  // coefficient of the load-balancing loss the model was made with
  FarSkipConfig farskip{FarSkipMode::off, {}};  // the wiring named in the model's own config

  std::int64_t qk_head_dim() const { return mla ? mla->nope_dim + mla->rope_dim : gqa.head_dim; }
  std::int64_t v_head_dim() const { return mla ? mla->v_dim : gqa.head_dim; }
  std::int64_t rope_dim() const { return mla ? mla->rope_dim : gqa.head_dim; }
  bool operator==(const ModelConfig&) const = default;
};

/// Reads the `model` section of a run configuration (`family` and that family's hub fields). Mistakes go
/// to `errors`; the result counts only if there are none.
ModelConfig read_model_section(const ConfigNode& section, ErrorList& errors);
/// Reads DIR/config.json of a hub-layout folder; a link is refused. DataError listing every field that is not
/// understood or has a value that is not built, MissingInputError without the file. `notices`: a line on keys
/// that were passed over, for the user.
ModelConfig read_hub_config(const std::filesystem::path& folder, std::vector<std::string>* notices = nullptr);
/// config.json text of a model whose weights are stored as `dtype`; read_hub_config of it gives the same
/// ModelConfig.
std::string hub_config_text(const ModelConfig& config, DType dtype = DType::f32);
/// The section `model` of a configuration with every default, without the wiring (section `farskip`).
ConfigNode model_section(const ModelConfig& config);

/// Parameters: all; active for one token (top_k of the experts); and active without the embedding table,
/// the count that model FLOPs are stated with.
struct ParameterCounts {
  std::int64_t total = 0, active = 0, active_without_embedding = 0;
};
ParameterCounts count_parameters(const ModelConfig& config);

/// Floating-point operations of one training step per token, forward and backward: 6 x (active parameters
/// without the embedding table) + causal attention over sequences of `sequence_length`.
double train_flops_per_token(const ModelConfig& config, std::int64_t sequence_length);

}  // namespace farskip
