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

/// Normal with mean 0 and this standard deviation, in the shape of a parameter.
HostTensor normal_numbers(const States& states, ParameterSpec spec, std::uint64_t seed, double deviation) {
  if (deviation == 0.0) spec.initializer = Initializer::zeros;
  const std::string name = spec.name;
  States numbers(states.shared_device(), weight_states(whole_parameters({std::move(spec)}), DType::f32));
  initialise_weights(numbers, seed, deviation);
  return copy_to_host(numbers.device(), numbers.at(name));
}

/// `experts` [E, …]: each is `mlp` times 1 + `noise`, element by element.
void fill_experts(const TensorView& experts, const HostTensor& mlp, const HostTensor& noise) {
  const std::span<const float> w = mlp.values<float>(), n = noise.values<float>();
  float* out = experts.as<float>();
  for (std::size_t i = 0; i < n.size(); ++i) out[i] = w[i % w.size()] * (1.0F + n[i]);
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

std::shared_ptr<States> upcycle_weights(const States& dense, const ModelConfig& config,
                                        const Upcycling& how) {
  const auto parameters = whole_parameters(list_parameters(config));
  auto made = std::make_shared<States>(dense.shared_device(), weight_states(parameters, dense.compute()));
  const auto dense_weight = [&](const std::string& name) {
    return copy_to_host(dense.device(), dense.at(name));
  };
  for (const LocalParameter& parameter : parameters) {
    const ParameterSpec& spec = parameter.spec;
    fill_from_host(made->device(), made->at(spec.name), [&](const TensorView& to) {
      if (spec.is_expert)
        return fill_experts(to, dense_weight(mlp_name(spec.name)),
                            normal_numbers(dense, spec, how.seed, how.noise));
      const HostTensor from = dense.contains(spec.name)
                                  ? dense_weight(spec.name)
                                  : normal_numbers(dense, spec, how.seed, config.initializer_range);
      std::copy(from.bytes().begin(), from.bytes().end(), to.bytes().begin());
    });
  }
  make_compute_copies(*made);
  return made;
}

}  // namespace farskip
