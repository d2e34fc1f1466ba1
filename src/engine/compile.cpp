// SPDX-License-Identifier: Apache-2.0
#include "farskip/engine/compile.h"

#include <algorithm>

#include "schedule/list_scheduler.h"

namespace farskip {
namespace {

// Weight gradients that wait for a window hold what they read; an order may take this much more than the
// serial one, and one transport of weights in parts more.
constexpr double kMemoryForOverlap = 1.3;

/// Bytes that a graph gives to one transport of weights in parts, or of their gradients; the most. Such
/// transports are what is not differentiated.
std::size_t largest_on_its_way(const Graph& graph) {
  std::vector<char> in_state(graph.num_values(), 0);
  for (const StateUpdate& u : graph.updates()) in_state[u.to.index()] = 1;
  std::size_t most = 0;
  for (const Node& node : graph.nodes()) {
    if (!node.op->collective || node.op->gradient != nullptr) continue;
    std::size_t bytes = 0;
    for (const std::vector<ValueId>* values : {&node.inputs, &node.outputs})
      for (const ValueId v : *values)
        if (graph.value(v).producer && in_state[v.index()] == 0) bytes += graph.type(v).num_bytes();
    most = std::max(most, bytes);
  }
  return most;
}

// What ranks know of a node may differ: the shards of ZeRO have other shapes on each. The order must not.
NodeSeconds agree_on_costs(const Graph& graph, const CostTable& costs, const Communicator& world) {
  NodeSeconds seconds = costs.estimate(graph);
  world.all_reduce(std::span(seconds));
  for (double& s : seconds) s /= world.size();
  return seconds;
}

/// The order of rank 0's plan on every rank. Collective.
std::vector<OrderedStep> share_order(const Plan& plan, const Communicator& world) {
  constexpr std::size_t fields = 5;
  std::vector<std::int64_t> numbers;
  for (const PlanStep& s : plan.steps)
    numbers.insert(numbers.end(),
                   {static_cast<std::int64_t>(s.node.index()), static_cast<std::int64_t>(s.kind),
                    s.portion.first, s.portion.count, s.portion.of});
  auto count = static_cast<std::int64_t>(numbers.size());
  world.broadcast(std::span(&count, 1), 0);
  numbers.resize(static_cast<std::size_t>(count));
  world.broadcast(std::span(numbers), 0);
  std::vector<OrderedStep> order;
  for (std::size_t i = 0; i < numbers.size(); i += fields)
    order.push_back({NodeId(static_cast<std::size_t>(numbers[i])),
                     static_cast<StepKind>(numbers[i + 1]),
                     {numbers[i + 2], numbers[i + 3], numbers[i + 4]}});
  return order;
}

// Memory steers the search, and shards of ZeRO differ in size: only one rank may choose the order.
Plan make_plan(const Graph& graph, const Device& device, const PlanOptions& options,
               const Communicator& world) {
  const WorkspaceRule workspace = workspace_rule(device);
  if (options.costs == nullptr) return make_serial_plan(graph, workspace, options.waits);
  const NodeSeconds seconds = agree_on_costs(graph, *options.costs, world);
  Plan plan;
  if (world.rank() == 0) plan = make_step_plan(graph, workspace, seconds, options.in_flight);
  return world.size() == 1 ? plan : make_plan(graph, workspace, share_order(plan, world));
}

}  // namespace

Plan make_step_plan(const Graph& graph, const WorkspaceRule& workspace, const NodeSeconds& seconds,
                    int in_flight) {
  const std::size_t serial = make_serial_plan(graph, workspace, Waits::late).live_bytes;
  const auto limit = static_cast<std::size_t>(kMemoryForOverlap * in_flight * static_cast<double>(serial)) +
                     largest_on_its_way(graph);
  return make_overlapped_plan(graph, workspace, seconds, {.memory_limit = limit});
}

PipelineOptions pipeline_for(DeviceKind device, PipelineOptions options) {
  if (device == DeviceKind::cpu) options.skip.insert(std::string(kRowsInSlabs));
  return options;
}

std::unique_ptr<Executor> compile(const PassPipeline& pipeline, const Context& context,
                                  const PipelineOptions& options, const PlanOptions& plan_options,
                                  bool align) {
  const Device& device = *context.device();
  Graph graph = run_pipeline(pipeline, pipeline_for(device.kind(), options), context.logger);
  Plan plan = make_plan(graph, device, plan_options, context.world());
  return std::make_unique<Executor>(std::move(graph), std::move(plan), device.kernels(), *context.arena,
                                    RankContext{&context.mesh, context.heartbeat, align});
}

}  // namespace farskip
