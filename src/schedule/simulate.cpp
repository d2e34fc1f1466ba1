// SPDX-License-Identifier: Apache-2.0
#include "farskip/schedule/simulate.h"

#include <algorithm>

namespace farskip {

Timeline simulate(const Graph& graph, const Plan& plan, const NodeSeconds& seconds) {
  Timeline t;
  t.nodes.resize(graph.nodes().size());
  t.exposed.assign(graph.nodes().size(), 0.0);
  double now = 0, link_free = 0;
  for (const PlanStep& step : plan.steps) {
    const std::size_t n = step.node.index();
    Timeline::Span& span = t.nodes[n];
    switch (step.kind) {
      case StepKind::run:
        if (step.portion.first == 0) span.begin = now;
        now += seconds[n] * step.portion.share();
        span.end = now;
        t.steps.push_back({now - seconds[n] * step.portion.share(), now});
        continue;
      case StepKind::start:
        span.begin = std::max(now, link_free);
        span.end = link_free = span.begin + seconds[n];
        break;
      case StepKind::wait:
        t.exposed[n] = std::max(0.0, span.end - now);
        t.exposed_seconds += t.exposed[n];
        now = std::max(now, span.end);
        break;
    }
    t.steps.push_back(span);
  }
  t.makespan = now;
  return t;
}

}  // namespace farskip
