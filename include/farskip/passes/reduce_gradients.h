// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>
#include <string>

#include "farskip/base/mesh_position.h"
#include "farskip/graph/graph.h"

namespace farskip {

/// A gradient accumulator of the graph, and the ranks that hold the same parameter.
struct ReplicatedGradient {
  std::string accumulator;  // name of the state external
  MeshAxis replicas = MeshAxis::world;
};

struct ReductionOptions {
  MeshPosition mesh;
  bool scatter = false;  // each replica keeps only its rows of the sum (ZeRO)
  std::size_t bucket_bytes = std::size_t{4} << 20;
};

/// Sums gradients over replicas. Accumulators are taken in the order in which their last value is computed
/// and put together in buckets of about `bucket_bytes`, a large tensor on its own, one axis each; a bucket is
/// reduced as soon as its last gradient is there. Buckets depend on shapes alone. scatter = false: the
/// accumulator becomes the sum. scatter = true: state own_rows_name() of the accumulator, this rank's rows,
/// becomes its rows of the sum (it may lie in the accumulator's own memory). Axes of size one add nothing.
Graph reduce_gradients(const Graph& graph, std::span<const ReplicatedGradient> gradients,
                       const ReductionOptions& options);

}  // namespace farskip
