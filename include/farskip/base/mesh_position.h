// SPDX-License-Identifier: Apache-2.0
#pragma once
// Where one rank stands in the mesh of all ranks, in plain numbers: enough to shard and to plan, without any
// communication (comm/mesh.h has the groups themselves).

#include <algorithm>
#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace farskip {

/// The groups a rank belongs to.
enum class MeshAxis : std::uint8_t {
  world,   // all ranks
  expert,  // that share one set of experts: consecutive ranks
  data,    // that hold the same experts
  tensor,  // that share every matrix and read the same sequences: consecutive ranks
  batch,   // that hold the same parts of matrices and read other sequences
};
constexpr auto enum_names(MeshAxis) {
  return std::array<std::string_view, 5>{"world", "expert", "data", "tensor", "batch"};
}
inline constexpr std::array mesh_axes{MeshAxis::world, MeshAxis::expert, MeshAxis::data, MeshAxis::tensor,
                                      MeshAxis::batch};
constexpr std::string_view axis_name(MeshAxis axis) {
  return enum_names(axis)[static_cast<std::size_t>(axis)];
}

/// rank = data rank * inner size + inner rank, where the inner axis is tensor, or expert where that is 1.
struct MeshPosition {
  int world_size = 1, world_rank = 0;
  int expert_size = 1;  // divides world_size
  int tensor_size = 1;  // likewise; above 1, expert_size is 1 or the same

  int size(MeshAxis axis) const {
    switch (axis) {
      case MeshAxis::world:
        return world_size;
      case MeshAxis::expert:
        return expert_size;
      case MeshAxis::tensor:
        return tensor_size;
      case MeshAxis::data:
        return world_size / std::max(expert_size, tensor_size);
      case MeshAxis::batch:
        return world_size / tensor_size;
    }
    return 1;
  }
  int rank(MeshAxis axis) const {
    switch (axis) {
      case MeshAxis::world:
        return world_rank;
      case MeshAxis::expert:
        return world_rank % expert_size;
      case MeshAxis::tensor:
        return world_rank % tensor_size;
      case MeshAxis::data:
        return world_rank / std::max(expert_size, tensor_size);
      case MeshAxis::batch:
        return world_rank / tensor_size;
    }
    return 0;
  }
  /// Both groups are the same ranks.
  bool same_ranks(MeshAxis a, MeshAxis b) const {
    const auto is_inner = [this](MeshAxis axis) {
      return axis == MeshAxis::expert || axis == MeshAxis::tensor || size(axis) == world_size;
    };
    const auto is_outer = [this](MeshAxis axis) {
      return axis == MeshAxis::data || axis == MeshAxis::batch || size(axis) == world_size;
    };
    return size(a) == size(b) && ((is_inner(a) && is_inner(b)) || (is_outer(a) && is_outer(b)));
  }
  /// Ranks between which routed rows travel: those that share experts and read other sequences.
  int exchange_size() const { return tensor_size == 1 ? expert_size : 1; }
  /// This rank speaks for its sequences where something is counted over the world: one of a tensor
  /// group does.
  bool counts_sequences() const { return rank(MeshAxis::tensor) == 0; }
  friend bool operator==(const MeshPosition&, const MeshPosition&) = default;
};

/// Part `part` of `total` things dealt out to `parts`: consecutive, sizes differ by one at most.
struct Range {
  std::int64_t first = 0, count = 0;
  std::int64_t end() const { return first + count; }
  friend bool operator==(const Range&, const Range&) = default;
};
constexpr Range part_of(std::int64_t total, int parts, int part) {
  const std::int64_t first = total * part / parts;
  return {first, total * (part + 1) / parts - first};
}

/// How the rows of a tensor are dealt out over the ranks of an axis: rank r has [bounds[r], bounds[r + 1]),
/// which may be none.
struct RowCut {
  MeshAxis axis = MeshAxis::world;
  std::vector<std::int64_t> bounds{0, 0};  // one more than ranks; the last is the number of rows

  std::int64_t num_rows() const { return bounds.back(); }
  Range part(int rank) const {
    const auto r = static_cast<std::size_t>(rank);
    return {bounds[r], bounds[r + 1] - bounds[r]};
  }
  friend bool operator==(const RowCut&, const RowCut&) = default;
};
/// In parts of whole `unit`s of rows, consecutive ones, as even as part_of.
inline RowCut cut_evenly(MeshAxis axis, std::int64_t rows, int ranks, std::int64_t unit = 1) {
  RowCut cut{axis, {}};
  for (int r = 0; r <= ranks; ++r) cut.bounds.push_back(rows / unit * r / ranks * unit);
  return cut;
}

}  // namespace farskip
