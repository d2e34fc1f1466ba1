// SPDX-License-Identifier: Apache-2.0
#include <map>
#include <set>

#include "farskip/base/file.h"
#include "farskip/model/layer_graph.h"
#include "farskip/model/lower.h"
#include "farskip/model/model_config.h"
#include "model/family.h"
#include "passes/farskip.h"
#include "support/catch.h"
#include "support/models.h"
#include "support/support.h"

namespace farskip {
namespace {

TEST_CASE("every family has a model among the fixtures") {
  std::set<std::string> seen, known;
  for (const std::string& name : test::model_fixtures())
    seen.insert(read_hub_config(test::fixtures() / name).family);
  for (const Family& family : families()) known.insert(family.name);
  CHECK(seen == known);
}

TEST_CASE("a config written for the hub reads back to the same model") {
  ModelConfig config = read_hub_config(test::fixtures() / GENERATE(from_range(test::model_fixtures())));
  const std::size_t i = GENERATE(range(std::size_t{0}, std::size(farskip_mode_names)));
  const FarSkipMode mode = farskip_mode_names[i].value;
  config.farskip.mode = mode;
  if (mode == FarSkipMode::delay) config.farskip.delay = 3;
  if (mode == FarSkipMode::ladder) config.farskip.layers = {LayerSelection::Kind::range, 0, 1, {}};
  if (mode == FarSkipMode::attention) config.farskip.layers = {LayerSelection::Kind::range, 1, 2, {}};
  if (mode == FarSkipMode::mlp) config.farskip.layers = {LayerSelection::Kind::list, 0, 0, {0, 2}};
  const test::TemporaryFolder folder;
  write_text_file(folder / "config.json", hub_config_text(config));
  CHECK(read_hub_config(folder.path()) == config);
  // A model type of its own, so that nothing loads it silently; the keys of FarSkip's own modes say nothing
  // but FarSkip.
  const auto written = [text = hub_config_text(config)](const std::string& part) {
    return text.find(part) != std::string::npos;
  };
  const bool farskip =
      mode == FarSkipMode::full || mode == FarSkipMode::attention || mode == FarSkipMode::mlp;
  const bool named = find_family(config.family)->names_farskip;  // by its own configs
  CHECK(written("\"model_type\": \"farskip_") == (farskip && !named));
  CHECK(written("\"farskip\": true") == farskip);
  CHECK(written("\"model_type\": \"rewired_") == (!farskip && mode != FarSkipMode::off));
  CHECK(written("\"farskip_wiring\": \"" + wiring_name(config.farskip) + "\"") ==
        (!farskip && mode != FarSkipMode::off));
}

TEST_CASE("a model section with every default reads back to the same model") {
  for (const std::string& name : test::model_fixtures()) {
    CAPTURE(name);
    ModelConfig config = read_hub_config(test::fixtures() / name);
    config.farskip = {FarSkipMode::off, {}};  // that is another section's
    ErrorList errors;
    const ModelConfig again = read_model_section(model_section(config), errors);
    errors.throw_if_any();
    CHECK(hub_config_text(again) == hub_config_text(config));
    config.farskip.mode = FarSkipMode::full;
    CHECK(to_yaml(model_section(config)) == to_yaml(model_section(again)));
  }
}

// The deepseek_v2 fixture with one field changed.
std::string config_with(const std::string& from, const std::string& to) {
  std::string text = read_text_file(test::fixtures() / "deepseek_v2" / "config.json");
  const std::size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

TEST_CASE("config fields that are not built are refused by name, never ignored") {
  const auto refused = [](const std::string& from, const std::string& to, const std::string& message) {
    CAPTURE(to);
    const test::TemporaryFolder folder;
    write_text_file(folder / "config.json", config_with(from, to));
    CHECK_THROWS_WITH(read_hub_config(folder.path()), ContainsSubstring(message));
    CHECK_THROWS_AS(read_hub_config(folder.path()), DataError);
  };
  refused("\"use_cache\": true", "\"quantization_config\": {\"bits\": 8}", "quantization_config");
  refused("\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\"", "gelu");
  refused("\"rope_type\": \"default\"", "\"rope_type\": \"longrope\"", "longrope");
  refused("\"model_type\": \"deepseek_v2\"", "\"model_type\": \"gpt2\"", "gpt2");
  refused("\"attention_bias\": false", "\"lm_head_bias\": true", "lm_head_bias");
  refused("\"norm_topk_prob\": false", "\"norm_topk_prob\": true", "norm_topk_prob");
  refused("\"kv_lora_rank\": 16", "\"kv_lora_rank\": -16", "kv_lora_rank");
  refused("\"kv_lora_rank\": 16,", "", "kv_lora_rank");
  refused("\"num_experts_per_tok\": 3", "\"num_experts_per_tok\": 9", "only 8 to choose from");
  const std::string allowed =
      "off, attention, mlp, full, ladder, parallel, shortcut, delay; delay as delay:1";
  refused("\"use_cache\": true", "\"farskip_wiring\": \"sideways\"", allowed);
  refused("\"use_cache\": true", "\"farskip_wiring\": \"delay:9\"", allowed);
  refused("\"use_cache\": true", "\"farskip_wiring\": \"delay\"", allowed);
  refused("\"use_cache\": true", "\"farskip_wiring\": \"ladder:1\"", allowed);
  refused("\"use_cache\": true", "\"farskip\": true, \"farskip_wiring\": \"ladder\"", "leave one of them");
  refused("\"model_type\": \"deepseek_v2\"", "\"model_type\": \"farskip_deepseek_v2\"",
          "no key says how; allowed: farskip: true");
  refused("\"use_cache\": true", "\"farskip\": true, \"farskip_start_idx\": 3, \"farskip_end_idx\": 1",
          "3 is behind the last rewired layer, 1");
  refused("\"use_cache\": true,", "\"use_cache\": true,,", "config.json");
  refused("\"DeepseekV2ForCausalLM\"", "\"MixtralForCausalLM\"",
          "'MixtralForCausalLM' is no model of family");
  refused("\"moe_intermediate_size\": ", "\"moe_intermediate_size\": 57646075230342348",
          "moe_intermediate_size");
  refused("\"num_hidden_layers\": 4", "\"num_hidden_layrs\": 4", "num_hidden_layers");
}

ParameterCounts counts_of(const ConfigNode& section) {
  ErrorList errors;
  const ModelConfig config = read_model_section(section, errors);
  errors.throw_if_any();
  return count_parameters(config);
}

ParameterCounts counts_of(const char* model) {
  ErrorList errors;
  return counts_of(parse_yaml_text(model, "test", errors));
}

TEST_CASE("parameter counts of public dense models are those of their authors") {
  const ParameterCounts llama = counts_of(
      "{family: llama, vocab_size: 128256, hidden_size: 4096, intermediate_size: 14336, num_hidden_layers: "
      "32, num_attention_heads: 32, num_key_value_heads: 8}");
  CHECK(llama.total == 8030261248);  // Llama-3.1-8B: 8.03B
  const ParameterCounts qwen = counts_of(
      "{family: qwen3, vocab_size: 151936, hidden_size: 1024, intermediate_size: 3072, num_hidden_layers: "
      "28, num_attention_heads: 16, num_key_value_heads: 8, head_dim: 128, tie_word_embeddings: true}");
  CHECK(qwen.total == 596049920);  // Qwen3-0.6B: 0.6B
}

/// By the files of configs/models; what is rounded, as the authors give it.
struct Released {
  double total, active, tolerance = 0.0;  // of the total
};
const std::map<std::string, Released> kReleased{
    {"smollm2_135m", {134515008, 134515008}},
    {"deepseek_v2_lite", {15706484224, 2.66e9}},  // 2.4B without one of the two tables
    {"deepseek_v2", {236e9, 21.4e9, 2e-3}},
    {"deepseek_v3", {671026419200, 37.6e9}},
    {"moonlight_16b", {15.96e9, 2.91e9, 1e-3}},  // 2.24B without embedding and head
    {"instella_moe_16b", {15862789248, 2.8e9}},
    {"qwen3_30b_a3b", {30.5e9, 3.3e9, 2e-3}},
    {"llama4_scout", {107769861120, 17.2e9}},    // 109B with the vision tower
    {"llama4_maverick", {400e9, 17.2e9, 1e-2}},  // 400B
    {"mixtral_8x7b", {46.7e9, 12.9e9, 1e-3}},
    {"olmoe_1b_7b", {6919161856, 1.28e9}},
};

TEST_CASE("the shapes of released models among the configurations have their authors' parameter counts") {
  std::set<std::string> read;
  for (const auto& entry : fs::directory_iterator(fs::path(FARSKIP_SOURCE_DIR) / "configs" / "models")) {
    CAPTURE(entry.path());
    ErrorList errors;
    const ConfigNode tree = parse_yaml_text(read_text_file(entry.path()), entry.path().string(), errors);
    errors.throw_if_any();
    REQUIRE(tree.find("model") != nullptr);
    const ParameterCounts counts = counts_of(*tree.find("model"));
    const std::string name = entry.path().stem().string();
    const auto released = kReleased.find(name);
    if (released == kReleased.end()) continue;  // not a whole model
    read.insert(name);
    CHECK(static_cast<double>(counts.total) ==
          Catch::Approx(released->second.total).epsilon(released->second.tolerance));
    CHECK(static_cast<double>(counts.active) == Catch::Approx(released->second.active).epsilon(0.02));
  }
  CHECK(read.size() == kReleased.size());
}

TEST_CASE("pieces of the hub cover every parameter exactly once") {
  const ModelConfig config = read_hub_config(test::fixtures() / GENERATE(from_range(test::model_fixtures())));
  for (const ParameterSpec& spec : list_parameters(config)) {
    CAPTURE(spec.name);
    std::int64_t row = 0;
    for (const HubPiece& piece : spec.pieces) {
      CHECK(piece.first_row == row);
      row += piece.shape.rank() == 1 ? piece.shape[0] : piece.shape.num_rows();
    }
    CHECK(row == (spec.shape.rank() == 1 ? spec.shape[0] : spec.shape.num_rows()));
  }
}

TEST_CASE("FarSkip changes what blocks read and nothing else") {
  const ModelConfig config = read_hub_config(test::fixtures() / "deepseek_v2");
  const LayerGraph standard = build_layer_graph(config);
  CHECK(rewire_farskip(standard, {FarSkipMode::off, {}}) == standard);
  const LayerGraph full = rewire_farskip(standard, {FarSkipMode::full, {}});
  REQUIRE(full.blocks.size() == standard.blocks.size());
  const auto omitted = [&](const LayerGraph& g, SubBlock kind, int layer) {
    std::vector<std::pair<SubBlock, int>> out;
    for (const int i : g.blocks[static_cast<std::size_t>(g.find(kind, layer))].omits)
      out.emplace_back(g.blocks[static_cast<std::size_t>(i)].kind,
                       g.blocks[static_cast<std::size_t>(i)].layer);
    return out;
  };
  using Omitted = std::vector<std::pair<SubBlock, int>>;
  CHECK(omitted(full, SubBlock::attention, 1).empty());  // layer 0 is dense: nothing is in flight
  CHECK(omitted(full, SubBlock::attention, 2) == Omitted{{SubBlock::routed, 1}});
  CHECK(omitted(full, SubBlock::routed, 2) == Omitted{{SubBlock::attention, 2}, {SubBlock::shared, 2}});
  CHECK(omitted(full, SubBlock::dense, 0) == Omitted{{SubBlock::attention, 0}});
  CHECK(omitted(full, SubBlock::head, -1).empty());
  const LayerGraph late =
      rewire_farskip(standard, {FarSkipMode::full, {LayerSelection::Kind::range, 2, 3, {}}});
  CHECK(omitted(late, SubBlock::routed, 1) == Omitted{{SubBlock::shared, 1}});
  CHECK(omitted(late, SubBlock::attention, 2) == Omitted{{SubBlock::routed, 1}});
}

TEST_CASE("FarSkip wiring costs no extra sums") {
  const ModelConfig config = read_hub_config(test::fixtures() / "deepseek_v2");
  const auto adds = [&](FarSkipMode mode) {
    LowerOptions options;
    options.sequence_length = 8;
    const Graph graph = lower(config, rewire_farskip(build_layer_graph(config), {mode, {}}), options);
    verify_graph(graph);
    return std::count_if(graph.nodes().begin(), graph.nodes().end(),
                         [](const Node& n) { return n.op->name == "add"; });
  };
  CHECK(adds(FarSkipMode::full) == adds(FarSkipMode::off));
}

}  // namespace
}  // namespace farskip
