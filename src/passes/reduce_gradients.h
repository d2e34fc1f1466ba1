// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>
#include <string>

#include "farskip/base/mesh_position.h"
#include "farskip/graph/graph.h"

namespace farskip {

/// A gradient accumulator of the graph, and the ranks that hold the same parameter, with the rows of each.
struct ReplicatedGradient {
  std::string accumulator;  // name of the state external
  RowCut owners;
};

/// KeptSum says what a replica has of a sum.
enum class KeptSum : std::uint8_t {
  whole,
  own_rows,         // ZeRO-1; its accumulator is whole
  accumulated_rows  // ZeRO-2: there is no accumulator but that of these rows
};

struct ReductionOptions {
  MeshPosition mesh;
  KeptSum kept = KeptSum::whole;
  bool accumulate = false;  // with accumulated_rows: the sum is added to what is there
  std::size_t bucket_bytes = std::size_t{4} << 20;
};

/// Sums gradients over replicas. Accumulators are taken in the order in which their last value is computed
/// and put together in buckets of at most about `bucket_bytes`, smaller ones where there is little to sum, a
/// large tensor on its own, one axis each; a bucket is
/// reduced as soon as its last gradient is there. Buckets depend on shapes alone. The accumulator becomes the
/// sum, or state own_rows_name() of it, this rank's rows, becomes its rows of the sum: with own_rows it may
/// lie in the accumulator's own memory, with accumulated_rows the graph has no other. Axes of size one add
/// nothing.
Graph reduce_gradients(const Graph& graph, std::span<const ReplicatedGradient> gradients,
                       const ReductionOptions& options);

}  // namespace farskip
