// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "farskip/schedule/simulate.h"

namespace farskip {

/// Upper bound of the transport time that any schedule can put under computation: the maximum flow from the
/// collectives (capacity: their transport time) to the compute nodes (capacity: their time alone), along
/// pairs of which neither needs the other. One piece of computation hides one transport at a time, so this is
/// less than the sum of min(transport, window) where windows overlap.
struct Hideable {
  double transport_seconds = 0;   // C: all transports
  double seconds = 0;             // H
  double any_window_seconds = 0;  // W: computation that may run under at least one of them
  std::vector<double> window;     // by node id: computation that may legally run under a collective
};
/// `phase`: only the nodes of one phase, or nullptr for all.
Hideable find_hideable(const Graph& graph, const NodeSeconds& seconds, const Phase* phase = nullptr);

}  // namespace farskip
