// SPDX-License-Identifier: Apache-2.0
#pragma once
// Tensors of models for tests, in the host's memory unless a device is named.

#include <memory>
#include <span>
#include <string>

#include "farskip/state/weights.h"
#include "state/hub_sources.h"
#include "state/state_names.h"

namespace farskip::test {

/// Contents are unspecified.
inline std::shared_ptr<States> make_weights(const std::vector<LocalParameter>& parameters,
                                            DType compute = DType::f32,
                                            std::shared_ptr<Device> device = make_cpu_device()) {
  return std::make_shared<States>(std::move(device), weight_states(parameters, compute));
}
inline std::shared_ptr<States> make_weights(const ModelConfig& config, const MeshPosition& mesh = {},
                                            int zero = 0) {
  return make_weights(local_parameters(list_parameters(config), mesh, zero));
}

/// Of a model folder.
inline std::shared_ptr<States> load_weights(const std::filesystem::path& folder,
                                            const MeshPosition& mesh = {}, int zero = 0) {
  const ModelConfig config = read_hub_config(folder);
  auto states = make_weights(config, mesh, zero);
  farskip::load_weights(*states, list_parameters(config), SafetensorsFolder(folder));
  return states;
}

/// Of a model whose weights `rows` makes.
inline std::shared_ptr<States> make_weights(const ModelConfig& config, const RowReader& rows) {
  auto states = make_weights(config);
  for (const StateSpec& spec : states->specs()) rows(*spec.parameter, 0, states->at(spec.name));
  return states;
}

/// A tensor of a file to be written, from memory.
inline HubSource source_of(const std::string& name, const TensorView& values) {
  return {name, values.shape, name, false, [values](const HubSource::Take& take) { take(values); }};
}

/// What AdamW keeps.
inline std::vector<StateSpec> moments_of(const std::vector<LocalParameter>& parameters) {
  std::vector<StateSpec> specs;
  for (const LocalParameter& p : parameters)
    for (const std::string_view kind : {kFirstMoment, kSecondMoment})
      specs.push_back({state_name(kind, p.spec.name), Role::optimizer, DType::f32,
                       std::make_shared<LocalParameter>(p), true, std::string(kind)});
  return specs;
}

/// In the host's memory.
inline std::span<float> values_of(const States& states, std::string_view name) {
  const TensorView view = states.at(name);
  return {view.as<float>(), static_cast<std::size_t>(view.num_elements())};
}

inline bool same_bits(const TensorView& a, const TensorView& b) {
  const auto x = a.bytes(), y = b.bytes();
  return std::equal(x.begin(), x.end(), y.begin(), y.end());
}

}  // namespace farskip::test
