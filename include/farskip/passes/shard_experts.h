#pragma once
#include "farskip/graph/graph.h"

namespace farskip {

struct ExpertSharding {
  std::int64_t peers = 1;     // ranks that share one set of experts; divides the number of experts
  std::int64_t max_rows = 0;  // routed rows that one rank may send to one other (the bound of the buffers)
};

/// Splits the experts of a forward graph over the ranks of the expert axis: expert weights keep the rows of
/// their own experts, and routed rows travel to them and back. By the rules of the ops (OpDef::routed): what
/// works by expert runs where the experts are, what works row by row runs where its rows are, and everything
/// else where the rows were made; where these meet, an all-to-all (exchange_rows, return_rows) is inserted,
/// once a value. Outputs "row_overflow.<layer>" i32[1] say where the bound did not hold. Gradients follow
/// from the ops, so differentiate afterwards. One peer: the graph as it is.
Graph shard_experts(const Graph& graph, const ExpertSharding& sharding);

}  // namespace farskip
