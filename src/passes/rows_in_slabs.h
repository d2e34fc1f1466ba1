// SPDX-License-Identifier: Apache-2.0
#pragma once
// Routed rows put straight into what is sent, and taken straight from what has come back.

#include "farskip/graph/graph.h"

namespace farskip {

/// For devices whose transports move slabs of fixed size (GPUs: a recorded step cannot change what it sends).
/// Of passes/shard_experts.h's graph, differentiated or not: dispatch_rows (or permute_values) before
/// exchange_rows becomes put_into_slabs before exchange_slabs, and return_rows before combine_rows (or
/// permute_values) return_slabs before take_from_slabs. No row is then copied only to be packed or unpacked.
/// InternalError where something else makes or reads the rows that travel.
Graph rows_in_slabs(const Graph& graph);

}  // namespace farskip
