// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <span>
#include <string>

#include "farskip/base/mesh_position.h"
#include "farskip/graph/graph.h"

namespace farskip {

/// A tensor that graphs read whole, and of which each rank of an axis keeps its rows alone.
struct TensorInParts {
  std::string name;  // of the external
  RowCut rows;
};

/// Puts such tensors together where they are read (ZeRO-3): in place of the external comes one of
/// own_rows_name, and an all_gather in front of the first reader. The backward gathers again, and so does
/// each model and each micro-batch in flight, so that the whole tensor need not live in between: it is a
/// value like any other, for which the scheduler finds the time and the plan of memory the place. Tensors of
/// one sub-block that are smaller than `bucket_bytes` travel together. Names that the graph does not read,
/// and axes of size one, change nothing. Run it last: passes before it see one tensor.
Graph gather_weights(const Graph& graph, std::span<const TensorInParts> tensors, const MeshPosition& mesh,
                     std::size_t bucket_bytes = std::size_t{4} << 20);

}  // namespace farskip
