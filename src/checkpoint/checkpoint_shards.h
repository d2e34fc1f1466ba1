// SPDX-License-Identifier: Apache-2.0
#pragma once
// Which rows of which checkpoint tensors a rank holds, and which of them it writes. Every rank finds its own
// share without asking the others.

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "farskip/comm/mesh.h"
#include "farskip/state/weights.h"

namespace farskip {

/// The ranks of an axis have a part each of these rows (ZeRO-3); all parts go to one, which writes them.
struct SharedRows {
  RowCut parts;  // of all rows of the block, in order of ranks
  int taker = 0;
};

/// A block of a checkpoint tensor, where it lies: in the memory of the states' device, or in a copy. At least
/// one row, but of shared ones.
struct TensorRows {
  Shape full_shape;  // of the whole tensor, rank 1 or 2
  std::int64_t first_row = 0;
  Range columns{};           // of each row, those that are here
  TensorView view;           // [num_rows] or [num_rows, columns]
  bool is_constant = false;  // no step changes it
  /// Where the ranks of a tensor group have a part each of what one of them writes: its rank in the group.
  std::optional<int> writer{};
  std::optional<SharedRows> shared{};

  std::int64_t num_rows() const { return view.shape[0]; }
  bool has_whole_rows() const { return columns.count == row_size(full_shape); }
};
/// The key is the tensor's name in the checkpoint: its hub name; before it, the kind of an optimizer's state.
using TensorRowsMap = std::map<std::string, TensorRows>;

/// All that this rank holds of one role, cut at the borders of hub tensors; of compute copies only what
/// cannot be made of the weights here (is_filled_by_itself).
TensorRowsMap held_rows(const States& states, Role role);

/// The part that this rank writes, or has a share in: over all ranks, each hub tensor once, and each row of a
/// state once. Hub tensors are dealt out so that the bytes of all ranks are about equal; states by the rows
/// of ZeRO, whether or not the replicas keep more.
TensorRowsMap weights_to_write(const States& states, const MeshPosition& mesh);
TensorRowsMap optimizer_to_write(const States& states, const MeshPosition& mesh);
/// Bytes of it that this rank writes.
std::size_t bytes_to_write(const TensorRows& rows, const MeshPosition& mesh);

/// Puts together what several ranks have parts of: the writers get it whole, in `storage`, and what others
/// write is gone from the list. Collective over the world.
void join_parts(TensorRowsMap& rows, const Mesh& mesh, Device& device,
                std::map<std::string, HostTensor>& storage);

/// "model-00002-of-00004.safetensors" for rank 1 of 4; alone "model.safetensors", as the hub has it.
std::string shard_name(std::string_view stem, const MeshPosition& mesh);

}  // namespace farskip
