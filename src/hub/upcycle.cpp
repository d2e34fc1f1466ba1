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
void fill_experts(HostTensor& experts, const HostTensor& dense) {
  const std::span<float> out = experts.values<float>();
  const std::span<const float> w = dense.values<float>();
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = w[i % w.size()] * (1.0F + out[i]);
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
  return config;
}

TensorMap upcycle_weights(TensorMap dense, const ModelConfig& config, const Upcycling& how) {
  TensorMap weights;
  for (ParameterSpec& spec : list_parameters(config)) {
    if (const auto kept = dense.find(spec.name); kept != dense.end()) {
      weights.insert(dense.extract(kept));
      continue;
    }
    HostTensor& made = weights.emplace(spec.name, HostTensor(DType::f32, spec.shape)).first->second;
    if (spec.is_expert && how.noise == 0.0) spec.initializer = Initializer::zeros;
    initialise_weights(weights, whole_parameters({spec}), how.seed,
                       spec.is_expert ? how.noise : config.initializer_range);
    if (spec.is_expert) fill_experts(made, dense.at(mlp_name(spec.name)));
  }
  return weights;
}

}  // namespace farskip
