// SPDX-License-Identifier: Apache-2.0
#include "autograd/gradient.h"

#include "farskip/ops/ops.h"
#include "graph/gradient_call.h"

namespace farskip {
namespace {

// Values that depend on a wanted value: only through these does a gradient flow.
std::vector<char> find_dependents(const Graph& graph, std::span<const ValueId> wanted) {
  std::vector<char> depends(graph.num_values(), 0);
  for (const ValueId v : wanted) depends[v.index()] = 1;
  for (const Node& node : graph.nodes()) {
    bool any = false;
    for (const ValueId v : node.inputs) any = any || (v && depends[v.index()]);
    for (const ValueId v : node.outputs) depends[v.index()] = any ? 1 : 0;
  }
  return depends;
}

}  // namespace

std::vector<ValueId> differentiate(Graph& graph, std::span<const Objective> objectives,
                                   std::span<const ValueId> wanted) {
  const std::vector<char> depends = find_dependents(graph, wanted);
  std::vector<ValueId> gradient(graph.num_values());
  auto accumulate = [&](ValueId value, ValueId contribution, const Scope& scope) {
    ValueId& sum = gradient[value.index()];
    if (!sum) {
      sum = contribution;
      return;
    }
    Builder builder{graph, scope};
    builder.scope.phase = Phase::backward;
    sum = ops::add(builder, sum, contribution);
  };
  for (const Objective& objective : objectives) {
    FARSKIP_CHECK(graph.type(objective.value) == graph.type(objective.seed),
                  "seed of another type than its value");
    gradient[objective.value.index()] = objective.seed;
  }

  const std::size_t num_forward = graph.nodes().size();
  for (std::size_t n = num_forward; n-- > 0;) {
    const Node node = graph.nodes()[n];
    std::vector<ValueId> output_gradients;
    bool any_gradient = false;
    for (const ValueId v : node.outputs) {
      output_gradients.push_back(gradient[v.index()]);
      any_gradient = any_gradient || gradient[v.index()];
    }
    std::vector<char> needed;
    bool any_needed = false;
    for (const ValueId v : node.inputs) {
      needed.push_back(v && depends[v.index()] && is_float(graph.type(v).dtype) ? 1 : 0);
      any_needed = any_needed || needed.back();
    }
    if (!any_gradient || !any_needed) continue;
    FARSKIP_CHECK(node.op->gradient != nullptr, "op {} @{} has no gradient rule", node.op->name,
                  node.scope.text());
    GradientCall call(graph, node, output_gradients, needed);
    node.op->gradient(call);
    for (std::size_t i = 0; i < node.inputs.size(); ++i)
      if (const ValueId contribution = call.input_gradients()[i]) {
        const DType dtype = graph.type(node.inputs[i]).dtype;
        const DType expected = call.is_parameter(i) ? wide(dtype) : dtype;
        FARSKIP_CHECK(graph.type(contribution).dtype == expected,
                      "{} @{}: the gradient of input {} is {}, not {}", node.op->name, node.scope.text(), i,
                      dtype_name(graph.type(contribution).dtype), dtype_name(expected));
        accumulate(node.inputs[i], contribution, node.scope);
      }
  }
  std::vector<ValueId> result;
  for (const ValueId v : wanted) result.push_back(gradient[v.index()]);
  return result;
}

}  // namespace farskip
