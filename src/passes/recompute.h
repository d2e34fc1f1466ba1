// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <set>

#include "farskip/graph/graph.h"

namespace farskip {

/// Computes values of the forward again in the backward instead of keeping them: those that the backward
/// reads and that come from the sub-blocks `blocks`, from the values that enter these sub-blocks, which are
/// kept. Run it after autograd. Adds copies of forward nodes with phase backward, in front of their first
/// reader there; changes no value. The router with its counts and orders, and losses are never repeated: what
/// they give is kept. So are collectives, unless `collectives`: rows then travel once more instead of being
/// kept, in the same order on every rank.
Graph recompute(const Graph& graph, const std::set<SubBlock>& blocks, bool collectives = false);

}  // namespace farskip
