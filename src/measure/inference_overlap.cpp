// SPDX-License-Identifier: Apache-2.0
#include "measure/inference_overlap.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>

#include "base/statistics.h"
#include "measure/measure.h"
#include "schedule/hideable.h"

namespace farskip {
namespace {

using Clock = std::chrono::steady_clock;

/// One of the two orders.
class Runner {
 public:
  Runner(const Model& model, const Context& context, const std::shared_ptr<const States>& weights,
         const InferenceCase& run, const PlanOptions& plan, bool align)
      : world_(context.world()),
        bench_(model, context, weights, run.texts, run.length, plan, align),
        run_(run.kind == InferenceRun::prefill ? bench_.prefill_tokens(run.texts, run.length)
                                               : bench_.decode_tokens(run.texts, run.length)) {}

  std::int64_t num_tokens() const { return run_.count(); }
  const CachedTokens& tokens() const { return run_; }
  CachedEngine& engine() { return bench_.engine(); }

  /// With the time of every step.
  void run_timed() {
    executed_.clear();
    engine().observe([&](const Executor& executor, const std::vector<StepTime>& times) {
      executed_.emplace_back(&executor, times);
    });
    seconds_ = run();
    for (const StepTime& step : executed_.front().second) seconds_ -= step.skew_seconds;
    world_.all_reduce(std::span(&seconds_, 1), Reduction::max);
  }
  /// As a user runs it: on a GPU, from the third on, as a recording. The slowest rank's seconds.
  double run_whole() {
    engine().observe({});
    double seconds = run();
    world_.all_reduce(std::span(&seconds, 1), Reduction::max);
    return seconds;
  }
  /// Of the last timed run, less what ranks waited for each other before collectives.
  double seconds() const { return seconds_; }
  /// In which this rank's compute stream stood still; mean of the ranks.
  double exposed_seconds() const {
    double seconds = 0;
    for (const StepTime& step : executed_.front().second)
      if (step.kind != StepKind::run) seconds += step.seconds - step.packing_seconds;
    world_.all_reduce(std::span(&seconds, 1));
    return seconds / world_.size();
  }
  const ExecutedPlans& executed() const { return executed_; }

  std::vector<float> logits() {
    engine().observe({});
    run();
    const TensorView view = engine().logits();
    return {view.as<float>(), view.as<float>() + view.num_elements()};
  }

 private:
  double run() {
    world_.barrier();
    const auto start = Clock::now();
    engine().next(run_, std::vector<Draw>(run_.output_rows.size()));
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  Communicator world_;
  InferenceBench bench_;
  CachedTokens run_;
  ExecutedPlans executed_;
  double seconds_ = 0;
};

bool same_everywhere(bool same, const Communicator& world) {
  double differs = same ? 0 : 1;
  world.all_reduce(std::span(&differs, 1), Reduction::max);
  return differs == 0;
}

/// Takes the largest over all ranks.
double largest_difference(const std::vector<float>& got, const std::vector<float>& want,
                          const Communicator& world) {
  FARSKIP_CHECK(got.size() == want.size(), "{} logits and {}", got.size(), want.size());
  std::array<double, 2> largest{};  // difference, logit
  for (std::size_t i = 0; i < want.size(); ++i) {
    largest[0] = std::max(largest[0], std::abs(static_cast<double>(got[i]) - want[i]));
    largest[1] = std::max(largest[1], std::abs(static_cast<double>(want[i])));
  }
  world.all_reduce(std::span<double>(largest), Reduction::max);
  return largest[0] / largest[1];
}

}  // namespace

InferenceOverlap measure_inference_overlap(const Model& model, const Context& shared,
                                           const std::shared_ptr<const States>& weights,
                                           const InferenceCase& run, int repetitions) {
  const Context context = shared.with_own_arena();
  const Communicator& world = context.world();
  std::vector<float> undivided;
  if (run.parts > 1)
    undivided = Runner(model, context, weights, run, {.waits = Waits::at_once}, false).logits();
  const auto make = [&](PlanOptions plan, bool align) {
    plan.in_flight = run.parts;
    return std::make_unique<Runner>(model, context, weights, run, plan, align);
  };
  const auto blocking = make({.waits = Waits::at_once}, true);
  CostTable costs;
  warm_up(context, 1, [&] { blocking->run_timed(); });
  constexpr int to_plan_by = 3;
  for (int i = 0; i < to_plan_by; ++i) {
    blocking->run_timed();
    add_step_costs(costs, blocking->executed(), world);
  }
  const auto overlapped = make({.costs = &costs}, false);
  InferenceOverlap report;
  report.tokens = blocking->num_tokens() * context.mesh.batch().size();
  report.identical = same_everywhere(blocking->logits() == overlapped->logits(), world);
  if (run.parts > 1) report.difference = largest_difference(overlapped->logits(), undivided, world);
  overlapped->run_timed();
  CostTable measured;
  std::array<std::vector<double>, 2> seconds;
  std::vector<double> exposed;
  for (int i = 0; i < repetitions; ++i) {
    // Which goes first changes from pair to pair: a machine that grows warmer favours neither.
    for (const bool first : {true, false}) (first == (i % 2 == 0) ? blocking : overlapped)->run_timed();
    seconds[0].push_back(blocking->seconds());
    seconds[1].push_back(overlapped->seconds());
    exposed.push_back(overlapped->exposed_seconds());
    add_step_costs(measured, blocking->executed(), world);
  }
  const Graph& graph = blocking->executed().front().first->graph();
  const Hideable bound = find_hideable(graph, measured.estimate(graph));
  report.transport_seconds = bound.transport_seconds;
  report.hideable_seconds = bound.seconds;
  report.exposed_seconds = median(exposed);
  if (context.device()->kind() != DeviceKind::cpu) {
    // Marks around every kernel, and launching one by one, take time of their own.
    for (std::vector<double>& list : seconds) list.clear();
    constexpr int to_record = 2;
    for (int i = 0; i < to_record + repetitions; ++i) {
      const std::array<double, 2> pair{blocking->run_whole(), overlapped->run_whole()};
      for (std::size_t k = 0; i >= to_record && k < 2; ++k) seconds[k].push_back(pair[k]);
    }
  }
  report.blocking_seconds = median(seconds[0]);
  report.blocking_p99 = quantile(seconds[0], 0.99);
  report.overlapped_seconds = median(seconds[1]);
  report.overlapped_p99 = quantile(seconds[1], 0.99);
  report.identical = report.identical && same_everywhere(blocking->logits() == overlapped->logits(), world);
  context.mesh.forget_device_addresses();  // before memory is given back that peers have open
  return report;
}

}  // namespace farskip
