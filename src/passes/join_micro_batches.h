// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <initializer_list>

#include "farskip/graph/graph.h"

namespace farskip {

/// One graph that runs `first` and then `next`, the graphs of two micro-batches of one step, or of two parts
/// of a run over a cache: parameters and the inputs `shared` are those of both; what `next` changes of a
/// state (what it adds its gradients to, the cache that it writes into) is what `first` has made of it. The
/// scopes of `next` say micro-batch `number`, and the names of its own inputs and of its outputs end in
/// "#number". The order of additions is that of running one after the other, so the bits are the same; a
/// schedule may put the computation of one under the transports of the other.
Graph join_micro_batches(const Graph& first, const Graph& next, int number,
                         std::initializer_list<std::string_view> shared);

/// The same nodes, of all micro-batches in turns, each up to its next collective: an order in which
/// transports of one already run under the computation of the others, for the scheduler to begin with. What a
/// micro-batch reads of an earlier one (a cache) is made between the same collectives.
Graph interleave_micro_batches(const Graph& graph);

/// "tokens" of micro-batch 0, "tokens#1" of micro-batch 1.
std::string micro_batch_name(std::string_view name, int number);
/// The name without its number.
std::string_view base_name(std::string_view name);

}  // namespace farskip
