// SPDX-License-Identifier: Apache-2.0
#include "plan/plan_report.h"

#include <algorithm>
#include <chrono>

#include "distill/freeze.h"
#include "farskip/program/inference_program.h"
#include "plan/inference_plan.h"
#include "schedule/dependence.h"
#include "schedule/hideable.h"

namespace farskip {

bool can_chunk(const ModelConfig& model, const TrainEngineOptions& options, const MeshPosition& mesh) {
  const bool routes =
      std::find(model.moe_layers.begin(), model.moe_layers.end(), true) != model.moe_layers.end();
  return mesh.exchange_size() > 1 && routes && options.sequence_length > 1;
}

int other_of_one_and_two(int number) {
  return number == 1 ? 2 : 1;
}

namespace {

std::size_t no_workspace(const OpDef&, const OpTypes&) {
  return 0;
}

WorkspaceRule workspace_of(const PlanRequest& request) {
  if (request.workspace) return request.workspace;
  return request.dtype == DType::f32 ? &cpu_workspace : &no_workspace;
}

/// By node id of a collective: how much of its transport falls in times in which the compute stream waits.
/// (Timeline::exposed counts such a time for the collective that is waited for, also where the link was still
/// busy with another.)
std::vector<double> exposed_transports(const Plan& plan, const Timeline& timeline) {
  std::vector<NodeId> started;  // transports follow each other on the link
  for (const PlanStep& step : plan.steps)
    if (step.kind == StepKind::start) started.push_back(step.node);
  std::vector<double> exposed(timeline.nodes.size(), 0.0);
  double now = 0;
  std::size_t first = 0;
  for (std::size_t s = 0; s < plan.steps.size(); ++s) {
    const PlanStep& step = plan.steps[s];
    const double end = timeline.steps[s].end;
    if (step.kind == StepKind::run) now = end;
    if (step.kind != StepKind::wait || end <= now) continue;
    while (timeline.nodes[started[first].index()].end <= now) ++first;
    for (std::size_t i = first; i < started.size(); ++i) {
      const Timeline::Span& span = timeline.nodes[started[i].index()];
      if (span.begin >= end) break;
      exposed[started[i].index()] += std::min(span.end, end) - std::max(span.begin, now);
    }
    now = end;
  }
  return exposed;
}

/// A graph of a step and how often a step runs it.
struct StepGraph {
  Graph graph;
  std::int64_t repeats = 1;
};

TrainEngineOptions options_of(const PlanRequest& request) {
  TrainEngineOptions options = request.options;
  options.compute = request.dtype;
  if (request.distill) add_distillation(options, *request.distill, request.model);
  return options;
}

/// What computes in bf16 is a GPU.
PipelineOptions pipeline_of(const PlanRequest& request) {
  return pipeline_for(request.dtype == DType::f32 ? DeviceKind::cpu : DeviceKind::cuda,
                      request.options.pipeline);
}

/// All that a rank keeps.
std::vector<StateSpec> planned_states(const PlanRequest& request) {
  const TrainingProgram program(wire_model(request.model), options_of(request), request.mesh);
  std::vector<StateSpec> specs = program.weight_states();
  const auto add = [&](const std::vector<StateSpec>& more) {
    specs.insert(specs.end(), more.begin(), more.end());
  };
  add(program.training_states());
  if (request.distill && !request.distill->config.cache)
    add(plan_teacher(*request.distill, request.model, request.options.zero)
            .states(request.mesh, request.dtype));
  return specs;
}

class Planner {
 public:
  Planner(const PlanRequest& request, const FarSkipConfig& wiring, const Logger& logger)
      : r_(request),
        options_(options_of(request)),
        pipeline_(pipeline_of(request)),
        logger_(logger),
        program_(wire_model(request.model, wiring), options_, request.mesh),
        workspace_(workspace_of(request)) {
    if (std::string& folder = pipeline_.dump_folder; !folder.empty())
      folder = (fs::path(folder) / wiring_name(wiring)).string();
  }

  WiringReport run() {
    report_.memory = report_.blocking_memory = state_memory(r_);
    for (const StepGraph& step : step_graphs()) plan(step);
    report_.usual_arena = report_.memory.arena;
    report_.worst_routing_arena = worst_routing_arena();
    for (MemoryReport* m : {&report_.memory, &report_.blocking_memory})
      m->arena = std::max(m->arena, report_.worst_routing_arena);
    return std::move(report_);
  }

  /// The overlapped plan alone, as run() has it.
  PlannedStep run_scheduled() const {
    PlannedStep planned{.seconds = 0, .memory = state_memory(r_)};
    planned.memory.arena = worst_routing_arena();
    for (const StepGraph& step : step_graphs()) {
      const NodeSeconds seconds = costs_of(step.graph);
      add(step, make_step_plan(step.graph, workspace_, seconds, options_.in_flight), seconds, planned);
    }
    return planned;
  }

  PlannedStep run_in_graph_order(std::uint64_t most_bytes) const {
    PlannedStep planned{.seconds = 0, .memory = state_memory(r_)};
    for (const StepGraph& step : step_graphs())
      add(step, make_serial_plan(step.graph, workspace_, Waits::late), costs_of(step.graph), planned);
    if (planned.memory.total() <= most_bytes)
      planned.memory.arena = std::max(planned.memory.arena, worst_routing_arena());
    return planned;
  }

  /// As run() has it, without costs.
  MemoryReport blocking_memory() const {
    MemoryReport memory = state_memory(r_);
    memory.arena = worst_routing_arena();
    for (const StepGraph& step : step_graphs())
      memory.arena =
          std::max(memory.arena, make_serial_plan(step.graph, workspace_, Waits::at_once).arena_bytes);
    return memory;
  }

  std::size_t num_nodes() const { return num_nodes_; }

 private:
  Graph compile(PassPipeline pipeline) const {
    pipeline.last.push_back(gather_pass(planned_states(r_), r_.mesh));
    return run_pipeline(pipeline, pipeline_, logger_);
  }

  std::size_t worst_routing_arena() const {
    const RoutedRowsPlan& rows = program_.routed_rows();
    if (rows.fallback_batch == 0) return 0;
    const Graph worst =
        compile(program_.micro_batch(program_.at({rows.fallback_batch, rows.fallback_rows}, 1, 3)));
    return make_serial_plan(worst, workspace_, Waits::late).arena_bytes;
  }

  static void add(const StepGraph& step, const Plan& plan, const NodeSeconds& seconds, PlannedStep& to) {
    to.seconds += static_cast<double>(step.repeats) * simulate(step.graph, plan, seconds).makespan;
    to.memory.arena = std::max(to.memory.arena, plan.arena_bytes);
  }

  std::vector<StepGraph> step_graphs() const {
    std::vector<StepGraph> graphs;
    for (const auto& [kind, count] : program_.micro_batches())
      graphs.push_back({compile(program_.micro_batch(kind)), count});
    graphs.push_back({compile(program_.update())});
    return graphs;
  }

  NodeSeconds costs_of(const Graph& graph) const {
    if (r_.costs.table) return r_.costs.table->estimate(graph, r_.costs.links);
    const std::int64_t all = options_.micro_batch * options_.sequence_length * r_.model.moe.top_k;
    return estimate_by_rates(graph, r_.costs.rates, r_.costs.links,
                             expected_row_share(r_.mesh, all, program_.routed_rows().max_rows));
  }

  void plan(const StepGraph& step) {
    const Graph& graph = step.graph;
    const NodeSeconds seconds = costs_of(graph);
    const auto times = static_cast<double>(step.repeats);
    const Dependence dependence = find_dependence(graph);
    const Plan blocking = make_serial_plan(graph, workspace_, Waits::at_once);
    const Plan scheduled = make_step_plan(graph, workspace_, seconds, options_.in_flight);
    const Timeline timeline = simulate(graph, scheduled, seconds);
    report_.blocking_seconds += times * simulate(graph, blocking, seconds).makespan;
    report_.scheduled_seconds += times * timeline.makespan;
    report_.critical_path_seconds += times * longest_path(dependence, seconds);
    for (std::size_t n = 0; n < seconds.size(); ++n)
      if (!graph.nodes()[n].op->collective) report_.compute_seconds += times * seconds[n];
    report_.blocking_memory.arena = std::max(report_.blocking_memory.arena, blocking.arena_bytes);
    report_.memory.arena = std::max(report_.memory.arena, scheduled.arena_bytes);
    num_nodes_ += graph.nodes().size();
    std::vector<double> exposed = exposed_transports(scheduled, timeline);
    for (std::size_t n = 0; n < seconds.size(); ++n)
      exposed[n] = std::min(exposed[n], seconds[n]);  // rounding
    const std::vector<double> window = add_overlap(graph, seconds, exposed, times);
    add_collectives(step, seconds, exposed, window, find_blockers(graph, scheduled, Ancestors(dependence)));
  }

  /// Returns the window of each collective.
  std::vector<double> add_overlap(const Graph& graph, const NodeSeconds& seconds,
                                  const std::vector<double>& exposed, double times) {
    const auto add = [&](PlannedOverlap& to, const Hideable& h) {
      to.transport_seconds += times * h.transport_seconds;
      to.window_seconds += times * h.any_window_seconds;
      to.hideable_seconds += times * h.seconds;
    };
    const Hideable all = find_hideable(graph, seconds);
    add(report_.total, all);
    for (const Phase phase : {Phase::forward, Phase::backward, Phase::update}) {
      PlannedOverlap& direction = report_.directions[static_cast<std::size_t>(phase)];
      add(direction, find_hideable(graph, seconds, &phase));
    }
    for (std::size_t n = 0; n < seconds.size(); ++n) {
      const auto phase = static_cast<std::size_t>(graph.nodes()[n].scope.phase);
      report_.directions[phase].exposed_seconds += times * exposed[n];
      report_.total.exposed_seconds += times * exposed[n];
    }
    return all.window;
  }

  /// By node id of a collective: the first computation after its wait that needs it.
  static std::vector<NodeId> find_blockers(const Graph& graph, const Plan& plan, const Ancestors& ancestors) {
    std::vector<NodeId> blockers(graph.nodes().size());
    std::vector<NodeId> waited;  // collectives without a blocker so far
    for (const PlanStep& step : plan.steps) {
      if (step.kind == StepKind::wait) waited.push_back(step.node);
      if (step.kind != StepKind::run) continue;
      std::erase_if(waited, [&](NodeId c) {
        if (!ancestors.needs(step.node, c)) return false;
        blockers[c.index()] = step.node;
        return true;
      });
    }
    return blockers;
  }

  void add_collectives(const StepGraph& step, const NodeSeconds& seconds, const std::vector<double>& exposed,
                       const std::vector<double>& window, const std::vector<NodeId>& blockers) {
    const Graph& graph = step.graph;
    for (std::size_t n = 0; n < seconds.size(); ++n) {
      const Node& node = graph.nodes()[n];
      if (!node.op->collective) continue;
      std::string blocker;
      if (blockers[n]) {
        const Node& by = graph.node(blockers[n]);
        blocker = fmt::format("{} @{}", by.op->name, by.scope.text());
      }
      report_.collectives.push_back({node.op->name, node.scope, step.repeats,
                                     graph.cost(NodeId(n)).wire_bytes, seconds[n], window[n], exposed[n],
                                     std::move(blocker)});
    }
  }

  const PlanRequest& r_;
  const TrainEngineOptions options_;
  PipelineOptions pipeline_;
  const Logger& logger_;
  const TrainingProgram program_;
  const WorkspaceRule workspace_;
  WiringReport report_;
  std::size_t num_nodes_ = 0;
};

}  // namespace

std::string routed_rows_text(const RoutedRowsPlan& rows) {
  if (rows.max_rows == 0) return {};
  std::string text = fmt::format(
      "routed rows: room for {} from one rank to one other ({:.2f} times an even share), {:.0f} MiB over all "
      "layers",
      rows.max_rows, static_cast<double>(rows.max_rows) / static_cast<double>(rows.even_rows),
      static_cast<double>(rows.bytes) / (1 << 20));
  if (rows.fallback_batch > 0)
    text += fmt::format("; a step with more is repeated {} sequences at a time", rows.fallback_batch);
  return text;
}

MemoryReport state_memory(const PlanRequest& request) {
  return bytes_by_use(planned_states(request));
}

namespace {

/// What its engine takes for the held-out loss of a micro-batch.
MemoryReport forward_memory(const Model& teacher, const PlanRequest& request, const Logger& logger) {
  const TrainEngineOptions& o = request.options;
  const Graph graph =
      run_pipeline(evaluation_pipeline(teacher, nullptr,
                                       {o.micro_batch, o.sequence_length, HeadOutput::loss, o.document_mask},
                                       request.dtype, request.mesh),
                   pipeline_of(request), logger);
  MemoryReport memory = bytes_by_use(
      constant_states(local_parameters(list_parameters(teacher.config), request.mesh, false), request.dtype));
  memory.arena = make_serial_plan(graph, workspace_of(request), Waits::at_once).arena_bytes;
  return memory;
}

SeparateMemory plan_separate(const PlanRequest& request, const Logger& logger) {
  PlanRequest alone = request;
  alone.options.frozen = frozen_parameters(request.distill->config.freeze, request.model);
  alone.distill.reset();
  return {forward_memory(wire_model(request.distill->teacher), request, logger),
          Planner(alone, alone.model.farskip, logger).blocking_memory()};
}

/// Micro-batches in flight, and chunks.
std::vector<std::pair<int, int>> other_schedules(const PlanRequest& request) {
  const TrainEngineOptions& o = request.options;
  std::vector<std::pair<int, int>> others;
  if (const int in_flight = other_of_one_and_two(o.in_flight);
      request.mesh.world_size > 1 && o.micro_batches % in_flight == 0)
    others.emplace_back(in_flight, o.expert_chunks);
  const bool knows_chunks = !request.costs.table || request.costs.table->knows("split_rows");
  if (can_chunk(request.model, o, request.mesh) && knows_chunks)
    others.emplace_back(o.in_flight, other_of_one_and_two(o.expert_chunks));
  return others;
}

}  // namespace

int choose_expert_chunks(PlanRequest request, const Logger& logger) {
  if (!can_chunk(request.model, request.options, request.mesh)) return 1;
  const auto planned = [&](int chunks) {
    request.options.expert_chunks = chunks;
    return Planner(request, request.model.farskip, logger).run().scheduled_seconds;
  };
  const double one = planned(1);
  return planned(2) < (1 - kLeastGain) * one ? 2 : 1;
}

PlannedStep plan_scheduled_step(const PlanRequest& request, const Logger& logger) {
  return Planner(request, request.model.farskip, logger).run_scheduled();
}

PlannedStep plan_step_in_graph_order(const PlanRequest& request, std::uint64_t most_bytes,
                                     const Logger& logger) {
  return Planner(request, request.model.farskip, logger).run_in_graph_order(most_bytes);
}

PlanReport plan_step(const PlanRequest& request, const Logger& logger) {
  const auto start = std::chrono::steady_clock::now();
  PlanReport report;
  report.standard = Planner(request, {FarSkipMode::off, {}}, logger).run();
  Planner farskip(request, request.model.farskip, logger);
  report.farskip = farskip.run();
  report.num_nodes = farskip.num_nodes();
  for (const auto& [in_flight, chunks] : other_schedules(request)) {
    PlanRequest changed = request;
    changed.options.in_flight = in_flight;
    changed.options.expert_chunks = chunks;
    report.others.push_back({in_flight, chunks, Planner(changed, {FarSkipMode::off, {}}, logger).run(),
                             Planner(changed, request.model.farskip, logger).run()});
  }
  if (request.distill && !request.distill->config.cache) report.separate = plan_separate(request, logger);
  report.planning_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return report;
}

}  // namespace farskip
