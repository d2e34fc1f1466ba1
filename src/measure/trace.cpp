// SPDX-License-Identifier: Apache-2.0
#include "measure/trace.h"

#include <nlohmann/json.hpp>

namespace farskip {
namespace {

enum Track { kCompute, kTransport, kPredictedCompute, kPredictedTransport };
constexpr const char* kTrackNames[] = {"computation", "transport", "computation, predicted",
                                       "transport, predicted"};

class Trace {
 public:
  void begin_run(const std::string& name) {
    ++process_;
    measured_ = predicted_ = 0;
    meta("process_name", 0, name);
    for (int track = 0; track < 4; ++track) meta("thread_name", track, kTrackNames[track]);
  }

  void add(const TracedPlan& plan) {
    const Graph& graph = plan.executor->graph();
    std::vector<double> started(graph.nodes().size(), 0.0);
    for (const StepTime& step : plan.times) {
      const Node& node = graph.node(step.node);
      if (step.kind == StepKind::start) started[step.node.index()] = measured_;
      span(kCompute, node, measured_, step.seconds, step.kind);
      measured_ += step.seconds;
      if (step.kind == StepKind::wait)
        span(kTransport, node, started[step.node.index()], measured_ - started[step.node.index()],
             StepKind::run);
    }
    const Timeline timeline = simulate(graph, plan.executor->plan(), plan.costs);
    const std::vector<PlanStep>& steps = plan.executor->plan().steps;
    for (std::size_t i = 0; i < steps.size(); ++i) {
      if (steps[i].kind == StepKind::wait) continue;
      const Timeline::Span& s = timeline.steps[i];
      span(steps[i].kind == StepKind::start ? kPredictedTransport : kPredictedCompute,
           graph.node(steps[i].node), predicted_ + s.begin, s.end - s.begin, StepKind::run);
    }
    predicted_ += timeline.makespan;
  }

  std::string text() const {
    return nlohmann::json{{"traceEvents", events_}, {"displayTimeUnit", "ms"}}.dump() + "\n";
  }

 private:
  void meta(const char* what, int track, const std::string& name) {
    events_.push_back(
        {{"ph", "M"}, {"name", what}, {"pid", process_}, {"tid", track}, {"args", {{"name", name}}}});
  }
  void span(Track track, const Node& node, double begin, double seconds, StepKind kind) {
    if (seconds <= 0) return;
    constexpr const char* prefix[] = {"", "start ", "wait "};
    events_.push_back({{"ph", "X"},
                       {"pid", process_},
                       {"tid", static_cast<int>(track)},
                       {"ts", 1e6 * begin},
                       {"dur", 1e6 * seconds},
                       {"name", prefix[static_cast<std::size_t>(kind)] + node.op->name},
                       {"args", {{"scope", node.scope.text()}}}});
  }

  nlohmann::json events_ = nlohmann::json::array();
  int process_ = 0;
  double measured_ = 0, predicted_ = 0;
};

}  // namespace

std::string trace_json(const std::vector<std::pair<std::string, std::vector<TracedPlan>>>& runs) {
  Trace trace;
  for (const auto& [name, plans] : runs) {
    trace.begin_run(name);
    for (const TracedPlan& plan : plans) trace.add(plan);
  }
  return trace.text();
}

}  // namespace farskip
