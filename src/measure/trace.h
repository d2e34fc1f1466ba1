// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <string>
#include <utility>
#include <vector>

#include "farskip/runtime/executor.h"
#include "farskip/schedule/simulate.h"

namespace farskip {

/// A step as it ran: its plans in order, each with the seconds of its steps and what its nodes take by the
/// costs.
struct TracedPlan {
  const Executor* executor = nullptr;
  std::vector<StepTime> times;
  NodeSeconds costs;
};

/// Chrome/Perfetto trace (JSON) of several runs of a step, each a process of that name: tracks for
/// computation (waiting for transports is a span of its own) and for transports from start to the end of the
/// wait, as measured and as predicted by the costs. Microseconds.
std::string trace_json(const std::vector<std::pair<std::string, std::vector<TracedPlan>>>& runs);

}  // namespace farskip
