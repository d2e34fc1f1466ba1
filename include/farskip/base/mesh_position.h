// SPDX-License-Identifier: Apache-2.0
#pragma once
// Where one rank stands in the mesh of all ranks, in plain numbers: enough to shard and to plan, without any
// communication (comm/mesh.h has the groups themselves).

#include <array>
#include <cstdint>
#include <string_view>

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

}  // namespace farskip
