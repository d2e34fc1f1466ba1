// SPDX-License-Identifier: Apache-2.0
#include "distill/sensitivity.h"

#include "distill/distill_objective.h"
#include "farskip/engine/engine.h"

namespace farskip {
namespace {

/// Sequences [first, first + count) of the text.
Batch batch_of(const FoldText& text, std::int64_t first, std::int64_t count) {
  const auto cut = [&](const std::vector<std::int32_t>& values) {
    const auto begin = values.begin() + first * text.sequence_length;
    return std::vector<std::int32_t>(begin, begin + count * text.sequence_length);
  };
  return {cut(text.tokens), cut(text.targets), {}};
}

/// The model as the teacher of itself: every tensor is the student's own.
std::shared_ptr<const StepObjective> compare_with_itself(const Model& model) {
  Teacher teacher{model};
  for (const ParameterSpec& p : list_parameters(model.config)) teacher.shared.insert(p.name);
  return std::make_shared<DistillObjective>(DistillTerms{}, std::move(teacher), nullptr);
}

/// Sums over the text, by name.
std::map<std::string, double> compare(const Model& rewired,
                                      const std::shared_ptr<const StepObjective>& objective,
                                      const std::shared_ptr<const States>& weights, const FoldText& text,
                                      const Context& context) {
  InferenceEngine engine(rewired, weights, context, objective);
  std::map<std::string, double> sums;
  for (std::int64_t s = 0; s < text.sequences(); s += text.at_once)
    for (const auto& [name, sum] : engine.loss(batch_of(text, s, text.at_once), text.sequence_length).sums)
      sums[name] += sum;
  return sums;
}

}  // namespace

Sensitivity measure_sensitivity(const Model& model, const FarSkipConfig& wiring,
                                const std::shared_ptr<const States>& weights, const FoldText& text,
                                const Context& context) {
  if (model.layers == wire_model(model.config, wiring).layers)
    throw UsageError("--sensitivity: the wiring changes no layer of this model; name another with --farskip");
  if (model.config.farskip.mode != FarSkipMode::off)
    throw UsageError(
        fmt::format("--sensitivity: the model is rewired already ({}), so a layer cannot be rewired alone; "
                    "give the model that "
                    "it was made of",
                    wiring_name(model.config.farskip)));
  const auto objective = compare_with_itself(model);
  const auto tokens = static_cast<double>(text.tokens.size());
  Sensitivity found;
  const auto measure = [&](std::int64_t layer, const Model& rewired) -> RewiringCost {
    const auto sums = compare(rewired, objective, weights, text, context);
    found.model_loss = sums.at("teacher_loss") / tokens;
    return {layer, sums.at("student_loss") / tokens, sums.at("kl") / tokens, sums.at("agreement") / tokens};
  };
  for (std::int64_t layer = 0; layer < model.config.num_layers; ++layer) {
    if (!wiring.layers.contains(layer)) continue;
    FarSkipConfig alone = wiring;
    alone.layers = {.kind = LayerSelection::Kind::list, .layers = {layer}};
    const Model rewired = wire_model(model.config, alone);
    if (rewired.layers == model.layers) continue;
    found.layers.push_back(measure(layer, rewired));
    context.logger.info("layer {} rewired alone: KL {:.4f}", layer, found.layers.back().kl);
  }
  found.all = measure(-1, wire_model(model.config, wiring));
  return found;
}

}  // namespace farskip
