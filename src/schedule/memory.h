// SPDX-License-Identifier: Apache-2.0
#pragma once
// Liveness-based placement of values and scratch in one arena.

#include "farskip/schedule/plan.h"

namespace farskip {

/// Fills placements, workspace offsets, arena_bytes and live_bytes of a plan whose steps are set. A value
/// takes over the buffer of a dying input where its op allows it; an updated external value is computed in
/// its own buffer. Offsets: largest buffer first, lowest gap that fits among buffers alive at the same time.
void place_buffers(const Graph& graph, Plan& plan);
/// Fills live_bytes alone, as place_buffers does, in a fraction of its time: for plans that are compared.
void measure_buffers(const Graph& graph, Plan& plan);

}  // namespace farskip
