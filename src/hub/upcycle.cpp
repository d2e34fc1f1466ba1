// SPDX-License-Identifier: Apache-2.0
#include "farskip/hub/upcycle.h"

#include <algorithm>

#include "farskip/model/family.h"

namespace farskip {
namespace {

std::string name_dense_families() {
  std::vector<std::string> names;
  for (const Family& family : families())
    if (!family.with_experts.empty()) names.push_back(family.name);
  return fmt::format("{}", fmt::join(names, ", "));
}

/// "….mlp.experts.down_proj" is made of "….mlp.down_proj.weight".
std::string mlp_name(std::string experts) {
  constexpr std::string_view part = "experts.";
  return experts.erase(experts.find(part), part.size()) + ".weight";
}

/// `experts` [E, …] holds numbers n; each expert becomes `dense` times 1 + n, element by element.
void fill_experts(const TensorView& experts, const TensorView& dense) {
  const std::int64_t size = dense.num_elements();
  for (std::int64_t i = 0; i < experts.num_elements(); ++i)
    experts.as<float>()[i] = dense.as<float>()[i % size] * (1.0F + experts.as<float>()[i]);
}

}  // namespace

ModelConfig upcycle_config(const ModelConfig& dense, const Upcycling& how) {
  if (std::any_of(dense.moe_layers.begin(), dense.moe_layers.end(), [](bool moe) { return moe; }))
    throw UsageError(
        fmt::format("--upcycle: the model has experts already ({}, {} in a layer); give a dense one",
                    dense.family, dense.moe.num_experts));
  const Family* family = find_family(dense.family);
  FARSKIP_CHECK(family != nullptr, "family '{}'", dense.family);
  if (family->with_experts.empty())
    throw UsageError(fmt::format("--upcycle: no family has experts in place of the MLPs of {}; allowed: {}",
                                 dense.family, name_dense_families()));
  ModelConfig config = dense;
  config.family = family->with_experts;
  config.moe.num_experts = how.num_experts;
  config.moe.top_k = how.top_k;
  config.moe.expert_size = dense.intermediate_size;
  config.moe.normalize = true;
  config.aux_loss = ModelConfig{}.aux_loss;  // a dense model has none
  config.moe_layers.assign(config.moe_layers.size(), true);
  ErrorList errors;
  read_model_section(model_section(config), errors);
  if (!errors.empty())
    throw UsageError(fmt::format(
        "--upcycle: with experts it would be of the family {}, which cannot have what this model has: {}",
        config.family, errors.report()));
  return config;
}

std::shared_ptr<States> upcycle_weights(const States& dense, const ModelConfig& config,
                                        const Upcycling& how) {
  auto made = std::make_shared<States>(dense.shared_device(),
                                       weight_states(whole_parameters(list_parameters(config)), DType::f32));
  for (const StateSpec& state : made->specs()) {
    const TensorView to = made->at(state.name);
    if (dense.contains(state.name)) {
      const TensorView from = dense.at(state.name);
      std::copy(from.bytes().begin(), from.bytes().end(), to.bytes().begin());
      continue;
    }
    LocalParameter parameter = *state.parameter;
    const bool is_expert = parameter.spec.is_expert;
    if (is_expert && how.noise == 0.0) parameter.spec.initializer = Initializer::zeros;
    initialise_parameter(to, parameter, how.seed, is_expert ? how.noise : config.initializer_range);
    if (is_expert) fill_experts(to, dense.at(mlp_name(state.name)));
  }
  return made;
}

}  // namespace farskip
