// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a plan takes, by a table of costs: one compute stream, one link on which transports follow each other.

#include <span>
#include <vector>

#include "farskip/schedule/plan.h"

namespace farskip {

/// Seconds of every node, by node id: of a kernel alone, or of a collective's transport.
using NodeSeconds = std::vector<double>;

struct Timeline {
  struct Span {
    double begin = 0, end = 0;
  };
  std::vector<Span> nodes;  // by node id: from its first portion to its last
  std::vector<Span> steps;  // by step of the plan: of its portion, or of the transport it starts or waits for
  std::vector<double>
      exposed;  // by node id: of a collective, the time in which the compute stream waits for it
  double makespan = 0;
  double exposed_seconds = 0;
};

/// Runs the plan on paper: a transport begins when it has been started and the link is free.
Timeline simulate(const Graph& graph, const Plan& plan, const NodeSeconds& seconds);

}  // namespace farskip
