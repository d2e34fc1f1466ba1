// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <set>

#include "farskip/graph/graph.h"

namespace farskip {

/// Computes values of the forward again in the backward instead of keeping them: those that the backward
/// reads and that come from the sub-blocks `blocks`, from the values that enter these sub-blocks, which are
/// kept. Run it after autograd. Adds copies of forward nodes with phase backward, in front of their first
/// reader there; changes no value. Collectives, the router with its counts and orders, and losses are never
/// repeated: what they give is kept.
Graph recompute(const Graph& graph, const std::set<SubBlock>& blocks);

}  // namespace farskip
