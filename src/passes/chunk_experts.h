// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "farskip/graph/graph.h"

namespace farskip {

/// Cuts the tokens of every routed sub-block of a forward graph into `chunks` parts of consecutive rows, as
/// even as they can be, and repeats what lies between sort_by_expert and combine_rows for each of them.
/// Experts spread over ranks afterwards (passes/shard_experts.h) exchange the rows of one part at a time, so
/// that the experts' own work on one part is a window for the transport of another. No token's value changes;
/// the gradient of an expert's weights is summed part by part, which may round differently. The offsets that
/// the graph returns stay those of all tokens. One chunk: the graph as it is. InternalError where a part
/// would have no tokens.
Graph chunk_experts(const Graph& graph, int chunks);

}  // namespace farskip
