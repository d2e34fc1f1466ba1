// SPDX-License-Identifier: Apache-2.0
#include "hub/upcycle.h"

#include <algorithm>
#include <map>

#include "model/family.h"

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

/// `to`, rows of experts from `first_row` on, holds numbers n; each becomes w (1 + n) with the weight w of
/// the MLP, whose rows repeat from expert to expert.
void times_mlp(const TensorView& to, std::int64_t first_row, const LocalParameter& mlp,
               const RowReader& dense) {
  const std::int64_t height = mlp.spec.num_rows(), width = mlp.spec.row_size(), end = row_count(to.shape);
  for (std::int64_t row = 0; row < end;) {
    const std::int64_t first = (first_row + row) % height, count = std::min(end - row, height - first);
    const HostTensor weights(DType::f32, Shape{count, width});
    dense(mlp, first, weights.view());
    const float* w = weights.values<float>().data();
    float* values = to.as<float>() + row * width;
    for (std::int64_t i = 0; i < count * width; ++i) values[i] = w[i] * (1.0F + values[i]);
    row += count;
  }
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

RowReader upcycle_rows(const std::vector<ParameterSpec>& dense_model, const RowReader& dense,
                       const ModelConfig& config, const Upcycling& how) {
  std::map<std::string, LocalParameter, std::less<>> there;
  for (LocalParameter& p : whole_parameters(dense_model)) there.emplace(p.spec.name, std::move(p));
  return [there = std::move(there), dense, how, host = make_cpu_device(), range = config.initializer_range](
             const LocalParameter& p, std::int64_t first_row, const TensorView& to) {
    if (const auto same = there.find(p.spec.name); same != there.end())
      return dense(same->second, first_row, to);
    LocalParameter part = p;
    const bool is_expert = p.spec.is_expert;
    if (is_expert && how.noise == 0.0) part.spec.initializer = Initializer::zeros;
    initialise_parameter(*host, to, part, first_row, how.seed, is_expert ? how.noise : range);
    if (is_expert) times_mlp(to, first_row, there.at(mlp_name(p.spec.name)), dense);
  };
}

}  // namespace farskip
