// SPDX-License-Identifier: Apache-2.0
#include "measure/overlap.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>

#include "base/statistics.h"
#include "measure/random_engine.h"
#include "measure/trace.h"

namespace farskip {
namespace {

enum Direction { kForward, kBackward, kTotal, kNumDirections };
using PerDirection = std::array<double, kNumDirections>;

/// One timed step of one engine.
struct StepTimes {
  PerDirection wall{};     // slowest rank, without skew
  PerDirection exposed{};  // in which the compute stream stood still, mean of the ranks
  PerDirection compute{};  // mean of the ranks
  PerDirection skew{};     // mean of the ranks
};

/// The backward begins with the gradient of the loss; the head's weights may have been gathered for it
/// before.
bool begins_backward(const Node& node) {
  return node.scope.phase == Phase::backward && node.scope.block == SubBlock::head && !node.op->collective;
}

/// One of the two: its own weights and gradients, so that both go the same way.
class Runner {
 public:
  Runner(const Model& model, const TrainEngineOptions& options, const Context& context)
      : world_(context.world()), engine_(model, options, context, 1) {}

  StepTimes step(const std::vector<Batch>& batches, float scale, std::int64_t number) {
    executed_.clear();
    engine_->observe([&](const Executor& executor, const std::vector<StepTime>& times) {
      executed_.emplace_back(&executor, times);
    });
    return summarise(run(batches, scale, number));
  }

  /// Seconds of a step as training runs it, without marks: on a GPU, from the third on, as a recording.
  /// Slowest rank. executed() stays that of the last timed step.
  double whole_step(const std::vector<Batch>& batches, float scale, std::int64_t number) {
    engine_->observe({});
    double seconds = run(batches, scale, number);
    world_.all_reduce(std::span(&seconds, 1), Reduction::max);
    return seconds;
  }

  /// Loss and gradient norm, which holds every gradient, of the last step.
  bool same_sums_as(const Runner& other) const { return loss_ == other.loss_ && norm_ == other.norm_; }
  /// Gradients of the last step, and weights, which hold what all steps did; to the bit. Collective.
  bool same_tensors_as(Runner& other) {
    engine_->gather_weights();
    other.engine_->gather_weights();
    double differs = 0;
    const States &mine = *engine_->states(), &theirs = *other.engine_->states();
    for (const StateSpec& spec : mine.specs()) {
      if (spec.role != Role::weight && spec.role != Role::gradient) continue;
      const HostTensor a = copy_to_host(mine.device(), mine.at(spec.name)),
                       b = copy_to_host(theirs.device(), theirs.at(spec.name));
      if (std::memcmp(a.bytes().data(), b.bytes().data(), a.bytes().size()) != 0) differs = 1;
    }
    world_.all_reduce(std::span(&differs, 1), Reduction::max);
    return differs == 0;
  }

  std::size_t arena_bytes() const {
    std::size_t most = 0;
    for (const auto& [executor, times] : executed_) most = std::max(most, executor->plan().arena_bytes);
    return most;
  }
  /// The plans of the last step in order, with what their steps took on this rank.
  const ExecutedPlans& executed() const { return executed_; }

 private:
  double run(const std::vector<Batch>& batches, float scale, std::int64_t number) {
    world_.barrier();
    const auto start = std::chrono::steady_clock::now();
    loss_ = engine_->compute_gradients(batches, scale, 0.0F).loss_sum;
    norm_ = engine_->update(1e-4, number);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

  StepTimes summarise(double seconds) const {
    StepTimes t;
    t.wall[kTotal] = seconds;
    for (const auto& [executor, times] : executed_) {
      const bool is_first = &times == &executed_.front().second;
      Direction direction = kForward;
      for (const StepTime& step : times) {
        if (begins_backward(executor->graph().node(step.node))) direction = kBackward;
        const double computed = step.kind == StepKind::run ? step.seconds : step.packing_seconds;
        t.compute[kTotal] += computed;
        t.exposed[kTotal] += step.seconds - computed;
        t.skew[kTotal] += step.skew_seconds;
        t.wall[kTotal] -= step.skew_seconds;
        if (!is_first) continue;
        t.wall[direction] += step.seconds;
        t.skew[direction] += step.skew_seconds;
        t.compute[direction] += computed;
        t.exposed[direction] += step.seconds - computed;
      }
    }
    world_.all_reduce(std::span<double>(t.wall), Reduction::max);
    for (PerDirection* sums : {&t.exposed, &t.compute, &t.skew}) {
      world_.all_reduce(std::span<double>(*sums));
      for (double& sum : *sums) sum /= world_.size();
    }
    return t;
  }

  Communicator world_;
  RandomEngine engine_;
  double loss_ = 0;
  float norm_ = 0;
  ExecutedPlans executed_;
};

double median_of(const std::vector<StepTimes>& steps, PerDirection StepTimes::*field, Direction direction) {
  std::vector<double> values;
  for (const StepTimes& s : steps) values.push_back((s.*field)[direction]);
  return median(values);
}

void add_windows(const Graph& graph, const NodeSeconds& seconds, const Phase* phase, DirectionOverlap& out) {
  const Hideable h = find_hideable(graph, seconds, phase);
  out.hideable_seconds += h.seconds;
  out.transport_seconds += h.transport_seconds;
  out.window_seconds += h.any_window_seconds;
}

DirectionOverlap summarise(const std::vector<StepTimes>& blocking, const std::vector<StepTimes>& overlapped,
                           Direction direction) {
  DirectionOverlap d;
  d.blocking_seconds = median_of(blocking, &StepTimes::wall, direction);
  d.overlapped_seconds = median_of(overlapped, &StepTimes::wall, direction);
  d.skew_seconds = median_of(blocking, &StepTimes::skew, direction);
  d.exposed_seconds = median_of(overlapped, &StepTimes::exposed, direction);
  d.compute_blocking_seconds = median_of(blocking, &StepTimes::compute, direction);
  d.compute_overlapped_seconds = median_of(overlapped, &StepTimes::compute, direction);
  return d;
}

/// Makespan of a plan, cut where its backward begins.
PerDirection planned_seconds(const Executor& executor, const CostTable& costs) {
  const Timeline t = simulate(executor.graph(), executor.plan(), costs.estimate(executor.graph()));
  double begin = t.makespan;
  for (std::size_t n = 0; n < t.nodes.size(); ++n)
    if (begins_backward(executor.graph().nodes()[n])) begin = std::min(begin, t.nodes[n].begin);
  return {begin, t.makespan - begin, t.makespan};
}

/// Windows, bounds and plans by what everything took in the timed blocking runs.
void add_bounds(const Runner& blocking, const Runner& overlapped, const CostTable& measured,
                OverlapReport& report) {
  constexpr Phase forward = Phase::forward, backward = Phase::backward;
  const Graph& micro_batch = blocking.executed().front().first->graph();
  add_windows(micro_batch, measured.estimate(micro_batch), &forward, report.forward);
  add_windows(micro_batch, measured.estimate(micro_batch), &backward, report.backward);
  for (const auto& [executor, times] : blocking.executed())
    add_windows(executor->graph(), measured.estimate(executor->graph()), nullptr, report.total);
  const PerDirection first = planned_seconds(*overlapped.executed().front().first, measured);
  report.forward.planned_seconds = first[kForward];
  report.backward.planned_seconds = first[kBackward];
  for (const auto& [executor, times] : overlapped.executed())
    report.total.planned_seconds += planned_seconds(*executor, measured)[kTotal];
}

/// Collectives of the first micro-batch with their windows, and what is still seen of them when overlapped.
std::vector<CollectiveOverlap> describe_collectives(const Runner& overlapped, const CostTable& costs,
                                                    const Communicator& world) {
  const auto& [executor, times] = overlapped.executed().front();
  const Graph& graph = executor->graph();
  const NodeSeconds seconds = costs.estimate(graph), exposed = agree_on_seconds(graph, times, world);
  const Hideable h = find_hideable(graph, seconds);
  std::vector<CollectiveOverlap> list;
  for (std::size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    if (node.op->collective)
      list.push_back(
          {node.op->name, node.scope, graph.cost(NodeId(n)).wire_bytes, seconds[n], h.window[n], exposed[n]});
  }
  return list;
}

std::vector<TracedPlan> traced(const Runner& runner, const CostTable& costs) {
  std::vector<TracedPlan> plans;
  for (const auto& [executor, times] : runner.executed())
    plans.push_back({executor, times, costs.estimate(executor->graph())});
  return plans;
}

}  // namespace

OverlapReport measure_overlap(const Model& model, const TrainEngineOptions& options, const Context& shared,
                              const OverlapOptions& overlap) {
  const std::int64_t tokens = options.micro_batch * options.sequence_length;
  const auto costs = std::make_shared<const CostTable>(measure_step_costs(model, options, shared));
  TrainEngineOptions overlapped_options = options;
  overlapped_options.overlap = true;
  plan_by(costs, model.config, shared, overlapped_options);
  TrainEngineOptions blocking_options = overlapped_options;  // in the same chunks
  blocking_options.overlap = false;
  blocking_options.align = true;
  const Context context = shared.with_own_arena();  // of both, which run in turns
  const Communicator& world = context.world();
  Runner blocking(model, blocking_options, context);
  Runner overlapped(model, overlapped_options, context);

  OverlapReport report;
  std::vector<StepTimes> a, b;
  CostTable measured;
  const auto scale = 1.0F / static_cast<float>(tokens * options.micro_batches * context.mesh.batch().size());
  for (int i = 0; i < overlap.warmup + overlap.repetitions; ++i) {
    const std::vector<Batch> batches =
        random_step(7, static_cast<std::uint64_t>(i), options, context.mesh, model.config.vocab_size);
    StepTimes first, second;
    // Which goes first changes from pair to pair: a machine that grows warmer favours neither.
    if (i % 2 == 0) first = blocking.step(batches, scale, i + 1);
    second = overlapped.step(batches, scale, i + 1);
    if (i % 2 != 0) first = blocking.step(batches, scale, i + 1);
    report.identical = report.identical && blocking.same_sums_as(overlapped);
    if (i < overlap.warmup) continue;
    a.push_back(first);
    b.push_back(second);
    add_step_costs(measured, blocking.executed(), world);
  }
  // On a GPU the marks around every kernel, and launching one by one, take time of their own.
  std::vector<double> whole_blocking, whole_overlapped;
  constexpr int to_record = 2;
  for (int i = 0; context.device()->kind() != DeviceKind::cpu && i < to_record + overlap.repetitions; ++i) {
    const int number = overlap.warmup + overlap.repetitions + i;
    const std::vector<Batch> batches =
        random_step(7, static_cast<std::uint64_t>(number), options, context.mesh, model.config.vocab_size);
    const double first = blocking.whole_step(batches, scale, number + 1);
    const double second = overlapped.whole_step(batches, scale, number + 1);
    report.identical = report.identical && blocking.same_sums_as(overlapped);
    if (i < to_record) continue;
    whole_blocking.push_back(first);
    whole_overlapped.push_back(second);
  }
  report.identical = blocking.same_tensors_as(overlapped) && report.identical;
  report.forward = summarise(a, b, kForward);
  report.backward = summarise(a, b, kBackward);
  report.total = summarise(a, b, kTotal);
  if (!whole_blocking.empty()) {
    report.total.blocking_seconds = median(whole_blocking);
    report.total.overlapped_seconds = median(whole_overlapped);
  }
  add_bounds(blocking, overlapped, measured, report);
  for (const Runner* runner : {&blocking, &overlapped})
    for (const auto& [executor, times] : runner->executed())
      (runner == &blocking ? report.predicted_blocking_seconds : report.predicted_overlapped_seconds) +=
          planned_seconds(*executor, *costs)[kTotal];
  report.blocking_arena_bytes = blocking.arena_bytes();
  report.overlapped_arena_bytes = overlapped.arena_bytes();
  if (overlap.trace)
    report.trace =
        trace_json({{"blocking", traced(blocking, *costs)}, {"overlapped", traced(overlapped, *costs)}});
  report.collectives = describe_collectives(overlapped, measured, world);
  return report;
}

}  // namespace farskip
