// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "farskip/graph/graph.h"

namespace farskip {

/// Computes cheap values again in the backward instead of keeping them from the forward: outputs of ops that
/// are marked cheap (OpDef::cheap), where every input is kept for the backward anyway, so that the copy
/// needs nothing new. Adds copies of nodes with phase backward just before their first reader there; takes
/// no node away and changes no value. The memory of the forward value is then free between the two.
Graph rematerialise_cheap(const Graph& graph);

}  // namespace farskip
