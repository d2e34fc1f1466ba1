// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "farskip/graph/graph.h"

namespace farskip {

/// Without the fan_out ops, which have said what they had to say when the backward was made: readers of their
/// outputs read their inputs.
Graph drop_fan_out(const Graph& graph);

}  // namespace farskip
