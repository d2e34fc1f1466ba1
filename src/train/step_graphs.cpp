#include "farskip/train/step_graphs.h"

#include "farskip/autograd/gradient.h"

namespace farskip {

std::string gradient_name(std::string_view parameter) {
  return fmt::format("grad.{}", parameter);
}
std::string first_moment_name(std::string_view parameter) {
  return fmt::format("adam.m.{}", parameter);
}
std::string second_moment_name(std::string_view parameter) {
  return fmt::format("adam.v.{}", parameter);
}

Graph build_micro_batch_graph(const ModelConfig& config, const LayerGraph& layers,
                              const LowerOptions& options, bool accumulate) {
  Graph graph = lower(config, layers, options);
  const TensorType scalar{options.dtype, Shape{1}, {}};
  std::vector<Objective> objectives;
  objectives.push_back({*graph.find_output("loss_sum"),
                        graph.add_external(ExternalKind::input, std::string(kLossScale), scalar)});
  if (const auto balance = graph.find_output("balance_loss"))
    objectives.push_back(
        {*balance, graph.add_external(ExternalKind::input, std::string(kBalanceScale), scalar)});

  const std::vector<ParameterSpec> specs = list_parameters(config);
  std::vector<ValueId> parameters, accumulators;
  for (const ParameterSpec& spec : specs) {
    parameters.push_back(*graph.find_external(spec.name));
    accumulators.push_back(
        graph.add_external(ExternalKind::state, gradient_name(spec.name), {options.dtype, spec.shape, {}}));
  }
  const std::vector<ValueId> gradients = differentiate(graph, objectives, parameters);
  for (std::size_t i = 0; i < specs.size(); ++i) {
    FARSKIP_CHECK(gradients[i], "the loss does not depend on {}", specs[i].name);
    ValueId gradient = gradients[i];
    if (accumulate) {
      Builder b{graph, {0, 0, specs[i].layer, specs[i].block, Phase::backward}};
      gradient = ops::add(b, accumulators[i], gradient);
    }
    graph.add_update(accumulators[i], gradient);
  }
  return graph;
}

Graph build_update_graph(const std::vector<ParameterSpec>& specs, const OptimizerConfig& optimizer) {
  Graph graph;
  Builder b{graph, {0, 0, -1, SubBlock::optimizer, Phase::update}};
  std::vector<ValueId> gradients;
  std::vector<ops::AdamWState> states;
  for (const ParameterSpec& spec : specs) {
    const TensorType type{DType::f32, spec.shape, {}};
    const auto state = [&](const std::string& name) {
      return graph.add_external(ExternalKind::state, name, type);
    };
    states.push_back(
        {state(spec.name), state(first_moment_name(spec.name)), state(second_moment_name(spec.name))});
    gradients.push_back(state(gradient_name(spec.name)));
  }
  const ValueId hyper =
      graph.add_external(ExternalKind::input, std::string(kHyper), {DType::f32, Shape{3}, {}});
  const auto [norm, factor] =
      ops::clip_factor(b, ops::sum_of_squares(b, gradients), optimizer.clip_grad_norm);
  graph.add_output("grad_norm", norm);
  for (std::size_t i = 0; i < specs.size(); ++i) {
    b.scope.layer = specs[i].layer;
    const bool decays = specs[i].shape.rank() >= 2;
    const ops::AdamWState next = ops::adamw(b, states[i], gradients[i], factor, hyper,
                                            {.beta1 = optimizer.beta1,
                                             .beta2 = optimizer.beta2,
                                             .eps = optimizer.eps,
                                             .weight_decay = decays ? optimizer.weight_decay : 0.0});
    graph.add_update(states[i].parameter, next.parameter);
    graph.add_update(states[i].m, next.m);
    graph.add_update(states[i].v, next.v);
  }
  return graph;
}

}  // namespace farskip
