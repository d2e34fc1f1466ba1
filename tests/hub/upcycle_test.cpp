// SPDX-License-Identifier: Apache-2.0
// Dense models as models of experts. That the logits stay: parity_test.cpp.

#include "hub/upcycle.h"

#include <cmath>

#include "farskip/base/error.h"
#include "hub/hub_folder.h"
#include "support/catch.h"
#include "support/states.h"
#include "support/support.h"

namespace farskip {
namespace {

struct Dense {
  explicit Dense(const std::string& fixture) : config(read_hub_config(test::fixtures() / fixture)) {
    states = test::load_weights(test::fixtures() / fixture);
    weights = read_states(*states, Role::weight);
  }
  ModelConfig config;
  std::shared_ptr<States> states;
  TensorMap weights;
};

std::shared_ptr<States> upcycle_weights(const Dense& dense, const ModelConfig& config, const Upcycling& how) {
  return test::make_weights(config,
                            upcycle_rows(list_parameters(dense.config), rows_of(*dense.states), config, how));
}

double rms(std::span<const float> values) {
  double sum = 0;
  for (const float value : values) sum += static_cast<double>(value) * value;
  return std::sqrt(sum / static_cast<double>(values.size()));
}

std::vector<float> expert(const TensorMap& weights, const std::string& name, std::size_t e,
                          std::size_t count) {
  const std::span<const float> all = weights.at(name).values<float>();
  const auto first = all.begin() + static_cast<std::ptrdiff_t>(e * all.size() / count);
  return {first, first + static_cast<std::ptrdiff_t>(all.size() / count)};
}

std::vector<float> values_of(const TensorMap& weights, const std::string& name) {
  const std::span<const float> all = weights.at(name).values<float>();
  return {all.begin(), all.end()};
}

TEST_CASE(
    "an upcycled model is one of the family that has experts, and comes back from its folder as it is") {
  const auto [name, family] = GENERATE(values<std::pair<std::string, std::string>>(
      {{"llama", "mixtral"}, {"llama_tied", "mixtral"}, {"qwen3", "qwen3_moe"}}));
  const Dense dense(name);
  const Upcycling how{.num_experts = 4, .top_k = 2};
  const ModelConfig config = upcycle_config(dense.config, how);
  CHECK(config.family == family);
  CHECK(config.moe.normalize);
  CHECK(config.aux_loss == 0.001);
  CHECK(config.moe.expert_size == dense.config.intermediate_size);
  CHECK(config.rope == dense.config.rope);
  CHECK(config.tie_embeddings == dense.config.tie_embeddings);
  const auto states = upcycle_weights(dense, config, how);
  const TensorMap weights = read_states(*states, Role::weight);
  CHECK(weights.size() == list_parameters(config).size());
  const test::TemporaryFolder folder;
  write_hub_folder(folder.path(), config, hub_sources(*states), DType::f32, {});
  CHECK(read_hub_config(folder.path()) == config);
  const std::vector<ParameterSpec> specs = list_parameters(config);
  const TensorMap read = read_states(*test::load_weights(folder.path()), Role::weight);
  for (const ParameterSpec& spec : specs) CHECK(values_of(read, spec.name) == values_of(weights, spec.name));
}

TEST_CASE("experts are the dense model's MLP, noise makes each another, and all else stays") {
  const Dense dense("llama");
  const double noise = GENERATE(0.0, 0.05);
  const Upcycling how{.num_experts = 3, .top_k = 2, .noise = noise, .seed = 7};
  const ModelConfig config = upcycle_config(dense.config, how);
  const auto states = upcycle_weights(dense, config, how);
  const TensorMap weights = read_states(*states, Role::weight);
  for (const char* part : {"gate_up_proj", "down_proj"}) {
    const std::string experts = layer_name(1, std::string("mlp.experts.") + part);
    const std::vector<float> mlp =
        values_of(dense.weights, layer_name(1, std::string("mlp.") + part + ".weight"));
    std::vector<std::vector<float>> made;
    for (std::size_t e = 0; e < 3; ++e) {
      CAPTURE(part, e);
      made.push_back(expert(weights, experts, e, 3));
      std::vector<float> change(mlp.size());
      for (std::size_t i = 0; i < mlp.size(); ++i) change[i] = (made[e][i] - mlp[i]) / mlp[i];
      CHECK(rms(change) == Catch::Approx(noise).epsilon(0.05));
    }
    CHECK((made[0] == made[1]) == (noise == 0));
    CHECK((made[1] == made[2]) == (noise == 0));
  }
  for (const ParameterSpec& spec : list_parameters(config)) {
    if (spec.is_expert) continue;
    if (spec.is_router)
      CHECK(rms(weights.at(spec.name).values<float>()) ==
            Catch::Approx(config.initializer_range).epsilon(0.3));  // of 96 numbers
    else
      CHECK(values_of(weights, spec.name) == values_of(dense.weights, spec.name));
  }
  CHECK(values_of(weights, layer_name(0, "mlp.gate.weight")) !=
        values_of(weights, layer_name(1, "mlp.gate.weight")));
}

TEST_CASE("the seed alone decides on routers and noise") {
  const Dense dense("qwen3");
  const auto make = [&](std::uint64_t seed) {
    const Upcycling how{.num_experts = 4, .top_k = 2, .noise = 0.1, .seed = seed};
    return read_states(*upcycle_weights(dense, upcycle_config(dense.config, how), how), Role::weight);
  };
  const TensorMap one = make(1), again = make(1), other = make(2);
  for (const char* part : {"mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"}) {
    const std::string name = layer_name(0, part);
    CHECK(values_of(one, name) == values_of(again, name));
    CHECK(values_of(one, name) != values_of(other, name));
  }
}

TEST_CASE("models that have experts, and families without such another, are not upcycled") {
  const Upcycling how{.num_experts = 4, .top_k = 2};
  CHECK_THROWS_AS(upcycle_config(Dense("mixtral").config, how), UsageError);
  CHECK_THROWS_WITH(
      upcycle_config(Dense("mixtral").config, how),
      ContainsSubstring("has experts already (mixtral, ") && ContainsSubstring("give a dense one"));
  CHECK_THROWS_WITH(upcycle_config(Dense("qwen3_moe_tied").config, how),
                    ContainsSubstring("has experts already"));
  ModelConfig deepseek = Dense("deepseek_v2").config;
  deepseek.moe_layers.assign(deepseek.moe_layers.size(), false);
  CHECK_THROWS_AS(upcycle_config(deepseek, how), UsageError);
  CHECK_THROWS_WITH(upcycle_config(deepseek, how),
                    ContainsSubstring("in place of the MLPs of deepseek_v2; allowed: llama, qwen3"));
  CHECK_THROWS_AS(upcycle_config(Dense("llama_biases").config, how), UsageError);
  CHECK_THROWS_WITH(upcycle_config(Dense("llama_biases").config, how),
                    ContainsSubstring("attention_bias: \"true\" is not supported"));
  CHECK_THROWS_WITH(upcycle_config(Dense("llama_mlp_biases").config, how),
                    ContainsSubstring("mlp_bias: \"true\" is not supported"));
}

}  // namespace
}  // namespace farskip
