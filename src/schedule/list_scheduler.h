// SPDX-License-Identifier: Apache-2.0
#pragma once
// The one scheduler: it orders what a graph holds, from data dependence and a table of costs. It knows no op,
// layer or wiring; whatever is in the graph may fill the time of a transport.

#include "farskip/schedule/simulate.h"

namespace farskip {

struct ScheduleOptions {
  /// Largest sum of live buffers that the order may reach, bytes; where nothing that fits is ready, what
  /// frees most goes first. It comes before time: if no order that is tried keeps it, the one that exceeds it
  /// least is taken. 0: no limit.
  std::size_t memory_limit = 0;
};

/// A plan whose collectives run under computation. List scheduling by longest remaining path, on a simulated
/// machine: transports start as soon as the link is free for them, computation never idles while something is
/// ready, and what nobody waits for (weight gradients) is left for the windows. Some rules of thumb are
/// tried; the order with the shortest simulated time wins, the serial ones included. Only the order differs
/// from the serial plan: the same nodes, the same bits. The same graph and costs give the same plan on every
/// rank.
Plan make_overlapped_plan(const Graph& graph, const WorkspaceRule& workspace, const NodeSeconds& seconds,
                          const ScheduleOptions& options = {});

}  // namespace farskip
