// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "farskip/graph/graph.h"

namespace farskip {

struct ExpertSharding {
  std::int64_t peers = 1;  // ranks that share one set of experts; divides the number of experts
  /// Of the `rows` that a rank routes at most max_rows may go to one other (the bound of the buffers); of the
  /// fewer rows of a chunk as large a share, rounded up. 0 rows: max_rows is for all.
  std::int64_t max_rows = 0, rows = 0;
  std::int64_t most_of(std::int64_t routed) const;
};

/// Splits the experts of a forward graph over the ranks of the expert axis: expert weights keep the rows of
/// their own experts, and routed rows travel to them and back. By the rules of the ops (OpDef::routed): what
/// works by expert runs where the experts are, what works row by row runs where its rows are, and everything
/// else where the rows were made; where these meet, an all-to-all (exchange_rows, return_rows) is inserted,
/// once a value. Rows that an op makes row by row on their way to the experts (Llama 4 scales them) travel as
/// that op reads them, and it runs there. Outputs "row_overflow.<layer>" i32[1] (".<number>" behind those of
/// a layer with several routes) say where the bound did not hold. Gradients follow from the ops, so
/// differentiate afterwards. One peer: the graph as it is.
Graph shard_experts(const Graph& graph, const ExpertSharding& sharding);

}  // namespace farskip
