// SPDX-License-Identifier: Apache-2.0
#pragma once
// Which rows of which checkpoint tensors a rank holds, and which of them it writes. Every rank finds its own
// share without asking the others.

#include <cstdint>
#include <map>
#include <string>

#include "farskip/state/weights.h"

namespace farskip {

/// Some rows of a checkpoint tensor, where they lie: in the memory of the states' device, or in a copy. At
/// least one row.
struct TensorRows {
  Shape full_shape;  // of the whole tensor, rank 1 or 2
  std::int64_t first_row = 0;
  TensorView view;           // [num_rows] or [num_rows, row size]
  bool is_constant = false;  // no step changes it
  std::int64_t num_rows() const { return view.shape[0]; }
};
/// The key is the tensor's name in the checkpoint: its hub name; before it, the kind of an optimizer's state.
using TensorRowsMap = std::map<std::string, TensorRows>;

/// All that this rank holds of one role, cut at the borders of hub tensors.
TensorRowsMap held_rows(const States& states, Role role);

/// The part that this rank writes: over all ranks, each hub tensor once, and each row of a state once. Hub
/// tensors are dealt out so that the bytes of all ranks are about equal; states by the rows of ZeRO, whether
/// or not the replicas keep more.
TensorRowsMap weights_to_write(const States& states, const MeshPosition& mesh);
TensorRowsMap optimizer_to_write(const States& states, const MeshPosition& mesh);

/// "model-00002-of-00004.safetensors" for rank 1 of 4; alone "model.safetensors", as the hub has it.
std::string shard_name(std::string_view stem, const MeshPosition& mesh);

}  // namespace farskip
