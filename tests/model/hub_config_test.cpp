// SPDX-License-Identifier: Apache-2.0
// config.json as other programs write it: one setting in two places, keys without effect, null, reals.

#include <nlohmann/json.hpp>
#include <set>

#include "farskip/base/file.h"
#include "farskip/model/model_config.h"
#include "farskip/model/parameters.h"
#include "hub_json.h"
#include "model/family.h"
#include "support/catch.h"
#include "support/models.h"
#include "support/support.h"

namespace farskip {
namespace {

using test::fixture_config;
using test::Json;
using test::read;
using test::refusal;
using test::with;

TEST_CASE("the end token of a family's class counts as none where the vocabulary has it not") {
  const Json olmoe = fixture_config("olmoe");
  CHECK(olmoe["eos_token_id"] == 50279);
  CHECK(read(olmoe).eos_tokens.empty());
  CHECK(read(with(olmoe, {{"vocab_size", "50304"}})).eos_tokens == std::vector<std::int64_t>{50279});
  CHECK_THAT(refusal(with(olmoe, {{"eos_token_id", "50280"}})), ContainsSubstring("50280 is out of range"));
  CHECK_THAT(refusal(with(fixture_config("llama"), {{"eos_token_id", "50279"}})),
             ContainsSubstring("50279 is out of range"));
}

TEST_CASE("a family fills in what its config class does") {
  Json llama = fixture_config("llama"), qwen = fixture_config("qwen3");
  for (const char* key : {"head_dim", "num_key_value_heads"}) {
    llama.erase(key);
    qwen.erase(key);
  }
  CHECK(read(llama).gqa.kv_heads == 4);
  CHECK(read(llama).gqa.head_dim == 8);
  CHECK(read(with(llama, {{"head_dim", "null"}})).gqa.head_dim == 8);
  CHECK(read(with(qwen, {{"num_attention_heads", "32"}})).gqa.kv_heads == 32);
  CHECK(read(with(qwen, {{"num_attention_heads", "32"}})).gqa.head_dim == 128);

  // What no shape would show (transformers 5.24).
  const auto without = [](const std::string& model, const std::string& key) {
    Json config = fixture_config(model);
    REQUIRE(config.erase(key) == 1);
    return read(config);
  };
  for (const char* model : {"llama", "qwen3", "qwen3_moe", "deepseek_v2", "deepseek_v3"})
    CHECK(without(model, "rms_norm_eps").rms_norm_eps == 1e-6);
  for (const char* model : {"llama4_text", "mixtral", "olmoe"})
    CHECK(without(model, "rms_norm_eps").rms_norm_eps == 1e-5);
  CHECK(without("deepseek_v2", "routed_scaling_factor").moe.scaling == 1.0);
  CHECK(without("deepseek_v3", "routed_scaling_factor").moe.scaling == 2.5);
  CHECK(without("olmoe", "router_aux_loss_coef").aux_loss == 0.01);
  CHECK(without("mixtral", "router_aux_loss_coef").aux_loss == 0.001);
  const MoeConfig v3 = read(with(fixture_config("deepseek_v3"),
                                 {{"n_routed_experts", "16"}, {"n_group", "null"}, {"topk_group", "null"}}))
                           .moe;
  CHECK(v3.num_groups == 8);
  CHECK(v3.top_groups == 4);
  CHECK(read(with(llama, {{"is_llama_config", "true"},  // SmolLM2 on the hub
                          {"rope_interleaved", "false"},
                          {"transformers.js_config", R"({"kv_cache_dtype": {"q4f16": "float16"}})"}})) ==
        read(llama));
}

TEST_CASE("a setting with several names is read under each, and refused where they differ") {
  struct Case {
    std::string model, name, other, value, wrong;
  };
  const std::vector<Case> cases{
      {"qwen3_moe", "num_local_experts", "num_experts", "8", "4"},
      {"qwen3_moe", "num_local_experts", "n_routed_experts", "8", "4"},
      {"deepseek_v2", "n_routed_experts", "num_experts", "8", "4"},
      {"deepseek_v2", "n_routed_experts", "num_local_experts", "8", "16"},
      {"deepseek_v2", "n_shared_experts", "num_shared_experts", "2", "1"},
      {"qwen3_moe", "num_experts_per_tok", "num_experts_per_token", "2", "1"},
      {"qwen3_moe", "hidden_act", "hidden_activation", "\"silu\"", "\"gelu\""},
      {"qwen3_moe", "dtype", "torch_dtype", "\"float32\"", "\"bfloat16\""},
      {"deepseek_v2", "head_dim", "qk_rope_head_dim", "8", "10"},
      {"deepseek_v2", "num_attention_heads", "num_key_value_heads", "4", "2"},
  };
  for (const Case& c : cases) {
    CAPTURE(c.model, c.name, c.other);
    Json config = fixture_config(c.model);
    const ModelConfig expected = read(config);
    CHECK(read(with(config, {{c.name, c.value}, {c.other, c.value}})) == expected);
    const std::string message = refusal(with(config, {{c.name, c.value}, {c.other, c.wrong}}));
    CHECK_THAT(message, ContainsSubstring(c.name) && ContainsSubstring(c.other));
    if (c.name == "head_dim" || c.name == "num_attention_heads") continue;  // two settings that hang together
    config.erase(c.name);
    CHECK(read(with(config, {{c.other, c.value}})) == expected);
  }
  CHECK_THAT(refusal(with(fixture_config("qwen3_moe"),
                          {{"mlp_layer_types", R"(["sparse", "dense", "sparse", "sparse"])"}})),
             ContainsSubstring("mlp_layer_types: layer 1 is 'dense' here"));
  CHECK(refusal(with(fixture_config("deepseek_v2"),
                     {{"mlp_layer_types", R"(["dense", "sparse", "sparse", "sparse"])"}})) == "(read)");
  CHECK_THAT(refusal(with(fixture_config("deepseek_v2"),
                          {{"farskip", "true"}, {"farskip_start_idx", "2"}, {"farskip_layers", "[1, 3]"}})),
             ContainsSubstring("farskip_layers: layer 1 is outside"));
}

TEST_CASE("layers that predict further tokens are passed over with a notice, and refused in a run") {
  const Json config = fixture_config("deepseek_v3");
  for (const char* key : {"num_nextn_predict_layers", "num_mtp_layers"}) {
    Json more = config;
    more.erase("num_nextn_predict_layers");
    std::vector<std::string> notices;
    CHECK(read(with(more, {{key, "1"}}), &notices) == read(config));
    REQUIRE(notices.size() == 1);
    CHECK_THAT(notices[0], ContainsSubstring("model.layers.4.*"));
  }
  CHECK_THAT(refusal(with(fixture_config("deepseek_v2"), {{"num_nextn_predict_layers", "1"}})),
             ContainsSubstring("num_nextn_predict_layers"));
  ConfigNode section = model_section(read(config));
  section.set("num_nextn_predict_layers", make_node(std::int64_t{1}));
  ErrorList errors;
  read_model_section(section, errors);
  CHECK(errors.size() == 1);
}

TEST_CASE("fp8 with a factor per block of 128 x 128 is read, and no other quantisation") {
  const Json config = fixture_config("deepseek_v3");
  const auto quantised = [&](const std::string& settings) {
    return with(config, {{"quantization_config", settings}});
  };
  std::vector<std::string> notices;
  CHECK(read(quantised(R"({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128],
                           "activation_scheme": "dynamic"})"),
             &notices) == read(config));
  REQUIRE(notices.size() == 1);
  CHECK_THAT(notices[0], ContainsSubstring("fp8"));
  CHECK_THAT(refusal(quantised(R"({"quant_method": "fp8", "weight_block_size": [64, 64]})")),
             ContainsSubstring("weight_block_size"));
  CHECK_THAT(refusal(quantised(R"({"quant_method": "gptq", "weight_block_size": [128, 128]})")),
             ContainsSubstring("quant_method"));
}

TEST_CASE("the architecture tells Instella-MoE from DeepSeek-V3, and its own keys name the wiring") {
  Json config = fixture_config("deepseek_v3");
  config["architectures"] = {"InstellaMoEForCausalLM"};
  const auto wiring = [&](const std::vector<std::pair<std::string, std::string>>& keys) {
    const ModelConfig read_back = read(with(with(config, keys), {{"qk_layernorm", "true"}}));
    CHECK(read_back.family == "instella_moe");
    CHECK(read_back.gated_attention == (keys.size() > 1));
    return read_back.farskip;
  };
  CHECK(wiring({{"farskip", "false"}}).mode == FarSkipMode::off);
  CHECK(wiring({{"farskip", "true"}}).mode == FarSkipMode::full);
  const std::pair<std::string, std::string> farskip{"farskip", "true"}, gated{"gated_attention", "true"};
  CHECK(wiring({farskip, gated, {"attn_only_farskip", "true"}}).mode == FarSkipMode::attention);
  CHECK(wiring({farskip, gated, {"mlp_only_farskip", "true"}}).mode == FarSkipMode::mlp);
  const FarSkipConfig late =
      wiring({farskip, gated, {"farskip_start_idx", "1"}, {"farskip_end_idx", "10000"}});
  CHECK(late.layers == LayerSelection{LayerSelection::Kind::range, 1, 3, {}});
  CHECK_THAT(refusal(with(config, {farskip, {"attn_only_farskip", "true"}, {"mlp_only_farskip", "true"}})),
             ContainsSubstring("mlp_only_farskip: attn_only_farskip is set too"));
  const Json written = Json::parse(hub_config_text(read(with(config, {farskip, gated}))));
  CHECK(written["model_type"] == "deepseek_v3");
  CHECK(written["architectures"][0] == "InstellaMoEForCausalLM");
  CHECK(written["farskip"] == true);
  CHECK_THAT(refusal(with(fixture_config("deepseek_v3"), {gated})), ContainsSubstring("gated_attention"));
}

TEST_CASE("of a model of text and images the text part is read") {
  const Json text = fixture_config("llama4_text");
  Json outer;
  outer["model_type"] = "llama4";
  outer["architectures"] = {"Llama4ForConditionalGeneration"};
  outer["boi_token_index"] = 200080;
  outer["tie_word_embeddings"] = false;
  outer["torch_dtype"] = "bfloat16";
  outer["vision_config"] = {{"hidden_size", 1408}, {"model_type", "llama4_vision_model"}};
  outer["text_config"] = text;
  outer["text_config"].erase("architectures");
  std::vector<std::string> notices;
  CHECK(read(outer, &notices) == read(text));
  REQUIRE(notices.size() == 1);
  CHECK_THAT(notices[0], ContainsSubstring("text part") && ContainsSubstring("vision_config"));
  CHECK_THAT(refusal(with(outer, {{"tie_word_embeddings", "true"}})),
             ContainsSubstring("tie_word_embeddings"));
  CHECK_THAT(refusal(with(outer, {{"text_config", "null"}})), ContainsSubstring("text_config"));
  CHECK_THAT(refusal(with(outer, {{"surprise", "1"}})), ContainsSubstring("surprise"));
  outer["text_config"]["hidden_sise"] = 1;
  CHECK_THAT(refusal(outer), ContainsSubstring("text_config.hidden_sise"));
}

TEST_CASE("Llama 4's layers follow from lists, or from intervals where there are none") {
  Json config = fixture_config("llama4_text");
  const ModelConfig given = read(config);
  CHECK(given.long_text.rotated == std::vector<bool>{true, true, true, false});
  for (const char* key : {"layer_types", "moe_layers", "no_rope_layers"}) config.erase(key);
  CHECK(read(config) == given);
  CHECK(read(with(config, {{"no_rope_layers", "[]"}})) == given);  // as on the hub
  CHECK(read(with(config, {{"attn_temperature_tuning", "4"}})) == given);
  CHECK(read(with(config, {{"attn_temperature_tuning", "false"}})).long_text.temperature_scale == 0);
  CHECK(read(with(config, {{"attention_chunk_size", "null"}})).long_text.chunk == 0);
  CHECK(read(with(config, {{"interleave_moe_layer_step", "2"}})).moe_layers ==
        std::vector<bool>{false, true, false, true});
  CHECK_THAT(refusal(with(config, {{"no_rope_layers", "[1, 0]"}})), ContainsSubstring("2 entries for 4"));
  CHECK_THAT(refusal(with(config, {{"layer_types", R"(["full_attention"])"}})),
             ContainsSubstring("other keys make it chunked_attention"));
}

TEST_CASE("a mistake names the key as the file spells it") {
  Json config = fixture_config("qwen3_moe");
  config.erase("num_local_experts");
  CHECK_THAT(refusal(with(config, {{"n_routed_experts", "0"}})),
             ContainsSubstring("n_routed_experts: 0 is out of range"));
}

TEST_CASE("attention_bias adds biases to projections in the families whose classes have them") {
  for (const std::string& model : test::family_fixtures()) {
    CAPTURE(model);
    const Json config = with(fixture_config(model), {{"attention_bias", "true"}});
    const std::string family = read(fixture_config(model)).family;
    if (family == "mixtral" || family == "instella_moe") {
      CHECK_THAT(refusal(config), ContainsSubstring("attention_bias"));
      continue;
    }
    const ModelConfig c = read(config);
    CHECK(c.attention_bias);
    CHECK(read(Json::parse(hub_config_text(c))) == c);
    std::vector<std::string> biased;
    for (const ParameterSpec& p : list_parameters(c)) {
      if (p.layer != 1 || !p.name.ends_with(".bias")) continue;
      CHECK(p.initializer == Initializer::zeros);
      CHECK(!p.is_norm());
      CHECK(p.is_trained);
      biased.push_back(p.name.substr(p.name.find("attn.") + 5));
    }
    std::vector<std::string> expected{"q_proj.bias", "k_proj.bias", "v_proj.bias", "o_proj.bias"};
    if (c.mla && c.mla->q_lora_rank > 0)
      expected = {"q_a_proj.bias", "kv_a_proj_with_mqa.bias", "o_proj.bias"};
    else if (c.mla)
      expected = {"kv_a_proj_with_mqa.bias", "o_proj.bias"};
    CHECK(biased == expected);
  }
}

/// Whether the MLP of the family's class in transformers has biases where its config says so.
bool has_mlp_bias(const std::string& family) {
  return family == "llama" || family == "deepseek_v2";
}

TEST_CASE("mlp_bias adds biases to dense MLPs and shared experts in the families whose classes have them") {
  for (const std::string& model : test::family_fixtures()) {
    CAPTURE(model);
    // Checkpoints of before compare: their config says nothing of it but in llama.
    const ModelConfig without = read(fixture_config(model));
    CHECK(Json::parse(hub_config_text(without)).contains("mlp_bias") == (without.family == "llama"));
    const Json config = with(fixture_config(model), {{"mlp_bias", "true"}});
    if (!has_mlp_bias(without.family)) {
      CHECK_THAT(refusal(config), ContainsSubstring("mlp_bias"));
      continue;
    }
    const ModelConfig c = read(config);
    CHECK(c.mlp_bias);
    CHECK(read(Json::parse(hub_config_text(c))) == c);
    std::vector<std::string> biases;
    for (const ParameterSpec& p : list_parameters(c))
      for (const HubPiece& piece : p.pieces)
        if (piece.name.ends_with(".bias") && p.is_trained) biases.push_back(piece.name);
    std::vector<std::string> expected;
    for (std::int64_t layer = 0; layer < c.num_layers; ++layer)
      for (const char* part : {"gate_proj", "up_proj", "down_proj"})
        expected.push_back(layer_name(
            layer,
            fmt::format("mlp.{}{}.bias",
                        c.moe_layers[static_cast<std::size_t>(layer)] ? "shared_experts." : "", part)));
    CHECK(biases == expected);
  }
}

TEST_CASE("a key that names what is built anyway is accepted with that value and refused with another") {
  struct Case {
    std::string key, accepted, refused;
  };
  const std::vector<Case> cases{{"qkv_bias", "false", "true"},
                                {"lm_head_bias", "false", "true"},
                                {"bias", "false", "true"},
                                {"mlp_bias", "false", "true"},
                                {"quantization_config", "null", R"({"bits": 8})"},
                                {"is_decoder", "false", "true"},
                                {"is_encoder_decoder", "false", "true"},
                                {"add_cross_attention", "false", "true"},
                                {"hidden_dropout", "0.0", "0.1"},
                                {"attention_probs_dropout_prob", "0", "0.1"},
                                {"resid_pdrop", "0.0", "0.5"},
                                {"router_jitter_noise", "0.0", "0.01"},
                                {"final_logit_softcapping", "null", "30.0"},
                                {"pretraining_tp", "1", "2"},
                                {"num_nextn_predict_layers", "0", "1"},
                                {"logits_scaling", "1.0", "8.0"},
                                {"use_sliding_window", "false", "true"},
                                {"layer_types", R"(["full_attention"])", R"(["sliding_attention"])"},
                                {"hidden_act", "\"silu\"", "\"gelu\""},
                                {"partial_rotary_factor", "1.0", "0.5"}};
  for (const std::string& model : test::model_fixtures())
    for (const Case& c : cases) {
      CAPTURE(model, c.key);
      const Json config = fixture_config(model);
      const ModelConfig known = read(config);
      // Read for what they say by these families.
      if (c.key == "num_nextn_predict_layers" && find_family(known.family)->has_mtp) continue;
      if (c.key == "mlp_bias" && has_mlp_bias(known.family)) continue;
      if (c.key == "layer_types" && !known.long_text.rotated.empty()) continue;
      std::vector<std::string> notices;
      CHECK(read(with(config, {{c.key, c.accepted}}), &notices) == read(config));
      CHECK(notices.empty());
      CHECK_THAT(refusal(with(config, {{c.key, c.refused}})), ContainsSubstring(c.key));
    }
  const Json qwen = fixture_config("qwen3_moe"), deepseek = fixture_config("deepseek_v2");
  CHECK(refusal(with(qwen, {{"sliding_window", "4096"}})) == "(read)");
  CHECK_THAT(refusal(with(deepseek, {{"sliding_window", "4096"}})), ContainsSubstring("sliding_window"));
  CHECK(refusal(with(deepseek, {{"sliding_window", "4096"}, {"use_sliding_window", "false"}})) == "(read)");
  for (const auto& [key, ours, theirs] :
       {std::tuple{"rope_interleave", "false", "true"}, {"use_qk_norm", "true", "false"}}) {
    CHECK(refusal(with(qwen, {{key, ours}})) == "(read)");
    CHECK(refusal(with(deepseek, {{key, theirs}})) == "(read)");
    CHECK_THAT(refusal(with(qwen, {{key, theirs}})), ContainsSubstring(key));
    CHECK_THAT(refusal(with(deepseek, {{key, ours}})), ContainsSubstring(key));
  }
}

TEST_CASE("notes of other programs are passed over with one notice, and null is the default") {
  const Json config = fixture_config("deepseek_v2");
  std::vector<std::string> notices;
  const Json noted = with(config, {{"unsloth_version", "\"2026.1\""},
                                   {"unsloth_fixed", "true"},
                                   {"_attn_implementation", "\"eager\""},
                                   {"trl_version", "\"1\""},
                                   {"tokenizer_class", "\"PreTrainedTokenizerFast\""},
                                   {"output_router_logits", "true"},
                                   {"top_k", "50"},
                                   {"something_unheard_of", "null"},
                                   {"initializer_range", "null"},
                                   {"mlp_only_layers", "null"},
                                   {"tie_word_embeddings", "null"}});
  CHECK(read(noted, &notices) == read(config));
  REQUIRE(notices.size() == 1);
  for (const char* key : {"unsloth_version", "unsloth_fixed", "_attn_implementation", "trl_version"})
    CHECK_THAT(notices[0], ContainsSubstring(key));
  for (const char* key : {"tokenizer_class", "something_unheard_of", "top_k"})
    CHECK_THAT(notices[0], !ContainsSubstring(key));
  CHECK_THAT(refusal(with(config, {{"hidden_size", "null"}})), ContainsSubstring("hidden_size"));
}

TEST_CASE("what may change the model is refused, without a wild guess at what was meant") {
  for (const char* key : {"query_scale", "ffn_hidden", "use_rope", "rope", "nope_interval", "mamba_layers"}) {
    const std::string message = refusal(with(fixture_config("qwen3_moe"), {{key, "true"}}));
    CAPTURE(key);
    CHECK_THAT(message, ContainsSubstring(std::string(key) + ": this key is not known here"));
    CHECK_THAT(message, !ContainsSubstring("mean") && !ContainsSubstring("nearest"));
  }
  Json misspelt = fixture_config("qwen3_moe");
  misspelt["rms_norm_epsilon"] = misspelt["rms_norm_eps"];
  CHECK_THAT(refusal(misspelt), ContainsSubstring("did you mean rms_norm_eps?"));
}

TEST_CASE("the model section of a run does not pass over what a hub file may hold") {
  const ModelConfig config = read_hub_config(test::fixtures() / "qwen3_moe");
  for (const auto& [key, value] : {std::pair{"top_k", make_node(std::int64_t{4})},
                                   {"unsloth_version", make_node("2026.1")},
                                   {"initializer_range", ConfigNode{}},
                                   {"anything", ConfigNode{}}}) {
    CAPTURE(key);
    ConfigNode section = model_section(config);
    section.set(key, value);
    ErrorList errors;
    read_model_section(section, errors);
    CHECK(errors.size() == 1);
  }
}

TEST_CASE("a written config keeps reals real and integers whole") {
  for (const std::string& model : test::model_fixtures()) {
    const Json config = Json::parse(hub_config_text(read_hub_config(test::fixtures() / model)));
    std::size_t reals = 0;
    const std::set<std::string> real_keys{"rms_norm_eps",
                                          "initializer_range",
                                          "attention_dropout",
                                          "rope_theta",
                                          "routed_scaling_factor",
                                          "factor",
                                          "beta_fast",
                                          "beta_slow",
                                          "mscale",
                                          "mscale_all_dim",
                                          "attention_factor",
                                          "clip_qkv",
                                          "attn_scale",
                                          "aux_loss_alpha",
                                          "router_aux_loss_coef",
                                          "high_freq_factor",
                                          "low_freq_factor"};
    const auto check = [&](const Json& map, const auto& again) -> void {
      for (const auto& [key, value] : map.items()) {
        CAPTURE(model, key, value);
        if (value.is_object()) again(value, again);
        if (!value.is_number()) continue;
        CHECK(value.is_number_float() == real_keys.contains(key));
        reals += value.is_number_float() ? 1 : 0;
      }
    };
    check(config, check);
    CHECK(reals >= 4);
  }
}

TEST_CASE("config.json says in which type the weights are stored") {
  ModelConfig config = read_hub_config(test::fixtures() / "qwen3_moe");
  CHECK(Json::parse(hub_config_text(config))["torch_dtype"] == "float32");
  CHECK(Json::parse(hub_config_text(config, DType::bf16))["torch_dtype"] == "bfloat16");
}

}  // namespace
}  // namespace farskip
