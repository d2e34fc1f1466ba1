// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "farskip/graph/graph.h"

namespace farskip {

/// Replaces add(a, f(…)) by f(…, accumulate = a) where f's op can add to its output in place (OpDef::
/// accumulates), f's result has no other reader and a is defined before f. Saves a pass over memory for
/// every sum of the residual stream and every gradient that has several parts. Where values are low, the sum
/// is rounded once instead of twice.
Graph fuse_accumulate(const Graph& graph);

}  // namespace farskip
