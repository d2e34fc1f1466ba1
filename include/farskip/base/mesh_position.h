// SPDX-License-Identifier: Apache-2.0
#pragma once
// Where one rank stands in the mesh of all ranks, in plain numbers: enough to shard and to plan, without any
// communication (comm/mesh.h has the groups themselves).

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

namespace farskip {

/// The groups a rank belongs to: all ranks, the ranks that share one set of experts (its row of the mesh),
/// the ranks that hold the same experts (its column).
enum class MeshAxis : std::uint8_t { world, expert, data };
constexpr auto enum_names(MeshAxis) {
  return std::array<std::string_view, 3>{"world", "expert", "data"};
}

/// rank = data rank * expert_size + expert rank.
struct MeshPosition {
  int world_size = 1, world_rank = 0;
  int expert_size = 1;  // divides world_size

  int size(MeshAxis axis) const {
    if (axis == MeshAxis::world) return world_size;
    return axis == MeshAxis::expert ? expert_size : world_size / expert_size;
  }
  int rank(MeshAxis axis) const {
    if (axis == MeshAxis::world) return world_rank;
    return axis == MeshAxis::expert ? world_rank % expert_size : world_rank / expert_size;
  }
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
