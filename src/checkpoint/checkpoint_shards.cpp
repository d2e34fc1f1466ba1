// SPDX-License-Identifier: Apache-2.0
#include "farskip/checkpoint/checkpoint_shards.h"

#include <algorithm>

#include "farskip/state/state_names.h"

namespace farskip {
namespace {

std::int64_t piece_rows(const HubPiece& piece) {
  FARSKIP_CHECK(piece.shape.rank() == 1 || piece.shape.rank() == 2, "{} {}", piece.name, piece.shape.text());
  return piece.shape[0];
}

/// Adds some rows of a parameter's state, cut at the borders of its hub tensors. The state holds them.
void add_rows(TensorRowsMap& out, const States& states, const StateSpec& spec, const Range& rows) {
  const ParameterSpec& p = spec.parameter->spec;
  const Range kept = spec.rows();
  FARSKIP_CHECK(rows.count == 0 || (kept.first <= rows.first && rows.end() <= kept.end()),
                "rank keeps rows {} to {} of {}, not {} to {}", kept.first, kept.end(), spec.name, rows.first,
                rows.end());
  for (const HubPiece& piece : p.pieces) {
    const std::int64_t first = std::max(rows.first, piece.first_row);
    const std::int64_t end = std::min(rows.end(), piece.first_row + piece_rows(piece));
    if (first >= end) continue;
    std::vector<std::int64_t> dims = piece.shape.dims();
    dims[0] = end - first;
    const auto offset =
        static_cast<std::size_t>((first - kept.first) * p.row_size()) * dtype_size(spec.dtype);
    out[state_name(spec.kind, piece.name)] = {
        piece.shape,
        first - piece.first_row,
        {states.at(spec.name).as<std::byte>() + offset, spec.dtype, Shape(std::move(dims))},
        spec.role == Role::constant};
  }
}

struct OwnedPiece {
  const StateSpec* weight;
  const HubPiece* piece;
  std::int64_t num_bytes() const {
    return piece->shape.num_elements() * static_cast<std::int64_t>(dtype_size(weight->dtype));
  }
};

std::vector<OwnedPiece> pieces_by_size(const States& states, MeshAxis replicas) {
  std::vector<OwnedPiece> pieces;
  for (const StateSpec& spec : states.specs())
    if (holds_parameter(spec) && spec.parameter->owners.axis == replicas)
      for (const HubPiece& piece : spec.parameter->spec.pieces) pieces.push_back({&spec, &piece});
  std::stable_sort(pieces.begin(), pieces.end(),
                   [](const OwnedPiece& a, const OwnedPiece& b) { return a.num_bytes() > b.num_bytes(); });
  return pieces;
}

/// The pieces that fall to this rank: the largest first, each to the replica with the least so far. Experts
/// before the rest, as fewer ranks can take them; ranks of one data rank have equally many, of equal sizes,
/// so that what one knows of its own column holds for all.
std::vector<OwnedPiece> deal_pieces(const States& states, const MeshPosition& mesh) {
  std::vector<OwnedPiece> mine;
  std::vector<std::int64_t> by_data(static_cast<std::size_t>(mesh.size(MeshAxis::data)), 0);
  const auto deal = [&](MeshAxis axis, std::vector<std::int64_t>& load) {
    for (const OwnedPiece& owned : pieces_by_size(states, axis)) {
      const auto least = std::min_element(load.begin(), load.end());
      *least += owned.num_bytes();
      if (least - load.begin() == mesh.rank(axis)) mine.push_back(owned);
    }
  };
  deal(MeshAxis::data, by_data);
  std::vector<std::int64_t> by_rank;
  for (const std::int64_t load : by_data) by_rank.insert(by_rank.end(), mesh.expert_size, load);
  deal(MeshAxis::world, by_rank);
  return mine;
}

}  // namespace

TensorRowsMap held_rows(const States& states, Role role) {
  TensorRowsMap held;
  for (const StateSpec& spec : states.specs())
    if (spec.role == role) add_rows(held, states, spec, spec.rows());
  return held;
}

TensorRowsMap weights_to_write(const States& states, const MeshPosition& mesh) {
  TensorRowsMap mine;
  for (const auto& [weight, piece] : deal_pieces(states, mesh))
    add_rows(mine, states, *weight, {piece->first_row, piece_rows(*piece)});
  return mine;
}

TensorRowsMap optimizer_to_write(const States& states, const MeshPosition& mesh) {
  TensorRowsMap mine;
  for (const StateSpec& spec : states.specs()) {
    if (spec.role != Role::optimizer) continue;
    const LocalParameter& p = *spec.parameter;
    add_rows(mine, states, spec, p.owners.part(mesh.rank(p.owners.axis)));
  }
  return mine;
}

std::string shard_name(std::string_view stem, const MeshPosition& mesh) {
  if (mesh.world_size == 1) return fmt::format("{}.safetensors", stem);
  return fmt::format("{}-{:05}-of-{:05}.safetensors", stem, mesh.world_rank + 1, mesh.world_size);
}

}  // namespace farskip
