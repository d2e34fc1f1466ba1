// SPDX-License-Identifier: Apache-2.0
// Keys of hub configs that leave nothing to choose here: they name what is built anyway, or change nothing
// that a model computes. A key that is in none of these lists is refused.

#include <algorithm>
#include <set>

#include "model/family.h"

namespace farskip {
namespace {

// In every config.
constexpr const char* kNotes[] = {"_name_or_path", "architectures", "auto_map",  "family",
                                  "model_type",    "pad_token_id",  "use_cache", "transformers_version"};

// In files of other programs only: how text is sampled, what a call returns, what other tasks need.
constexpr const char* kHubNotes[] = {"attn_implementation",
                                     "bad_words_ids",
                                     "begin_suppress_tokens",
                                     "cache_implementation",
                                     "decoder_start_token_id",
                                     "diversity_penalty",
                                     "do_sample",
                                     "early_stopping",
                                     "encoder_no_repeat_ngram_size",
                                     "ep_size",
                                     "exponential_decay_length_penalty",
                                     "finetuning_task",
                                     "for_llm_compressor",
                                     "forced_bos_token_id",
                                     "forced_eos_token_id",
                                     "gradient_checkpointing",
                                     "id2label",
                                     "is_llama_config",
                                     "label2id",
                                     "length_penalty",
                                     "max_length",
                                     "max_new_tokens",
                                     "min_length",
                                     "name_or_path",
                                     "no_repeat_ngram_size",
                                     "num_beam_groups",
                                     "num_beams",
                                     "num_labels",
                                     "num_return_sequences",
                                     "output_attentions",
                                     "output_hidden_states",
                                     "output_router_logits",
                                     "output_scores",
                                     "prefix",
                                     "problem_type",
                                     "processor_class",
                                     "remove_invalid_values",
                                     "repetition_penalty",
                                     "return_dict",
                                     "return_dict_in_generate",
                                     "sep_token_id",
                                     "suppress_tokens",
                                     "task_specific_params",
                                     "temperature",
                                     "tokenizer_class",
                                     "top_k",
                                     "top_p",
                                     "transformers.js_config",
                                     "typical_p",
                                     "use_flash_attn",
                                     "use_return_dict"};

constexpr const char* kBiases = "biases are not built";
constexpr const char* kDropout = "dropout is not built";
constexpr const char* kDecoder = "a decoder alone is built";
constexpr const char* kScales = "such a factor is not built";

template <class T>
struct FixedChoice {
  const char* key;
  T value;
  const char* why;
};

constexpr FixedChoice<bool> kFlags[] = {
    {"attention_bias", false, kBiases},
    {"mlp_bias", false, kBiases},
    {"add_cross_attention", false, kDecoder},
    {"is_decoder", false, kDecoder},
    {"is_encoder_decoder", false, kDecoder},
    {"tie_encoder_decoder", false, kDecoder},
    {"is_causal", true, kDecoder},
    {"torchscript", false, "models are not traced"},
    {"use_bfloat16", false, "precision says what computes"},
    {"tf_legacy_loss", false, "the loss is cross-entropy"},
    {"use_sliding_window", false, "sliding-window attention is not built"}};
constexpr FixedChoice<double> kNumbers[] = {
    {"attention_dropout", 0.0, kDropout},
    {"chunk_size_feed_forward", 0.0, "the MLPs run in one piece"},
    {"num_nextn_predict_layers", 0.0, "only the next token is predicted"},
    {"pretraining_tp", 1.0, "it changes the order of sums"},
    {"embedding_multiplier", 1.0, kScales},
    {"logits_scaling", 1.0, kScales},
    {"logit_scale", 1.0, kScales},
    {"residual_multiplier", 1.0, kScales}};

/// Whole groups of such keys, by how their names end.
constexpr FixedChoice<bool> kFlagSuffixes[] = {{"bias", false, kBiases}};
constexpr FixedChoice<double> kNumberSuffixes[] = {{"dropout", 0.0, kDropout},
                                                   {"dropout_prob", 0.0, kDropout},
                                                   {"pdrop", 0.0, kDropout},
                                                   {"drop_path_rate", 0.0, kDropout},
                                                   {"softcapping", 0.0, kScales},
                                                   {"softcap", 0.0, kScales},
                                                   {"jitter_noise", 0.0, "routing without noise is built"}};

/// What other programs write down about themselves.
bool is_foreign_note(const std::string& key) {
  return key.starts_with('_') || key.ends_with("_version") || key.starts_with("unsloth_");
}

/// Weights in fp8 as DeepSeek-V3 stores them are read like others; no other form is.
void read_quantization(Reader& r) {
  if (!r.is_foreign() || !r.has("quantization_config")) return;
  Reader q = r.section("quantization_config");
  q.require_value("fmt", "e4m3", "weights in fp8 of this form alone are read");
  if (q.string("quant_method") != "fp8")
    q.fail("quant_method", "weights in fp8 alone are read; allowed: fp8");
  if (q.integers("weight_block_size", {.min = 1}, {}, {}) != std::vector<std::int64_t>{128, 128})
    q.fail("weight_block_size", "a factor per block of 128 x 128 is read; allowed: [128, 128]");
  q.require_value("expert_dtype", "fp8", "weights in fp8 alone are read");
  for (const char* key :
       {"activation_scheme", "dequantize", "modules_to_convert", "modules_to_not_convert", "scale_fmt"})
    q.ignore(key);
  q.finish();
  r.errors().add_notice("weights in fp8 are read as numbers; what is computed and written is not in fp8");
}

}  // namespace

void read_fixed_choices(Reader& r, const ModelConfig& c) {
  // Only where it stands there and no family has read it: these are no keys to propose for another.
  std::set<std::string> unread;
  for (const ConfigNode* node : r.unread()) unread.insert(node->key);
  const auto read_present = [&](const auto& choices) {
    for (const auto& choice : choices)
      if (unread.contains(choice.key))
        r.require_value(choice.key, choice.value, choice.why);
      else
        r.ignore(choice.key);
  };
  read_quantization(r);
  read_present(kFlags);
  read_present(kNumbers);
  r.also_called("hidden_act", {"hidden_activation"});
  r.require_value("hidden_act", "silu", "the MLPs are SwiGLU");
  if (unread.contains("layer_types"))
    for (const std::string& type : r.strings("layer_types"))
      if (type != "full_attention")
        r.fail("layer_types", fmt::format("'{}' is not supported; allowed: full_attention", type));
  const std::vector<std::string> mlps = r.strings("mlp_layer_types");
  for (std::size_t layer = 0; layer < mlps.size() && r.sound("mlp_layer_types"); ++layer)
    if (layer >= c.moe_layers.size() || mlps[layer] != (c.moe_layers[layer] ? "sparse" : "dense"))
      r.fail("mlp_layer_types",
             fmt::format("layer {} is '{}' here, and other keys say otherwise", layer, mlps[layer]));
  if (r.has("use_sliding_window"))  // which is false: these have no effect
    for (const char* key : {"sliding_window", "max_window_layers"}) r.ignore(key);
  for (const ConfigNode* node : r.unread()) {
    const auto read_by_suffix = [&](const auto& choices) {
      for (const auto& choice : choices)
        if (node->key.ends_with(choice.key)) r.require_value(node->key, choice.value, choice.why);
    };
    read_by_suffix(kFlagSuffixes);
    read_by_suffix(kNumberSuffixes);
  }
  for (const char* key : kNotes) r.ignore(key);
  r.also_called("torch_dtype", {"dtype"});
  r.ignore("torch_dtype");  // the shards say it of each tensor
}

std::vector<std::string> pass_over_foreign_notes(Reader& r) {
  std::vector<std::string> notes;
  for (const char* key : kHubNotes) r.ignore(key);
  for (const ConfigNode* node : r.unread()) {
    const bool is_null = node->kind == ConfigNode::Kind::null;  // what is not set changes nothing
    if (!is_null && !is_foreign_note(node->key)) continue;
    r.ignore(node->key);
    if (!is_null) notes.push_back(node->key);
  }
  return notes;
}

}  // namespace farskip
