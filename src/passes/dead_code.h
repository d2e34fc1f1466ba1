// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "farskip/graph/graph.h"

namespace farskip {

/// Removes nodes none of whose outputs is read, returned or a state update. Externals stay: they are the
/// interface of the graph.
Graph eliminate_dead_code(const Graph& graph);

}  // namespace farskip
