// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "farskip/graph/graph.h"

namespace farskip {

/// Adds partial sums before they travel: x + all_reduce(a) + all_reduce(b), where nothing else reads what is
/// between, becomes x + all_reduce(a + b). Half as much travels; the sum is rounded in another order.
Graph merge_all_reduces(const Graph& graph);

}  // namespace farskip
