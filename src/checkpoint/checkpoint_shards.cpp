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

/// Adds rows `rows` of a parameter, cut at the borders of its hub tensors. `tensor` holds rows from
/// `tensor_first` on.
void add_rows(TensorRowsMap& out, const LocalParameter& p, const Range& rows, const HostTensor& tensor,
              std::int64_t tensor_first, std::string_view kind) {
  for (const HubPiece& piece : p.spec.pieces) {
    const std::int64_t first = std::max(rows.first, piece.first_row);
    const std::int64_t end = std::min(rows.end(), piece.first_row + piece_rows(piece));
    if (first >= end) continue;
    const std::int64_t element = (first - tensor_first) * p.spec.row_size();
    std::vector<std::int64_t> dims = piece.shape.dims();
    dims[0] = end - first;
    const Shape shape(std::move(dims));
    FARSKIP_CHECK(element >= 0 && element + shape.num_elements() <= tensor.num_elements(),
                  "rows {} to {} of {} are not in a tensor {}", first, end, p.spec.name,
                  tensor.shape().text());
    out[state_name(kind, piece.name)] = {
        piece.shape, first - piece.first_row, {tensor.view().as<float>() + element, DType::f32, shape}};
  }
}

/// Adds what the optimizer keeps of these rows, which this rank keeps.
void add_states(TensorRowsMap& out, const TrainingTensors& tensors, const LocalParameter& p,
                const Range& rows) {
  const Range& kept = p.optimizer_rows;
  FARSKIP_CHECK(rows.count == 0 || (kept.first <= rows.first && rows.end() <= kept.end()),
                "rank keeps rows {} to {} of {}, not {} to {}", kept.first, kept.end(), p.spec.name,
                rows.first, rows.end());
  for (const auto& [kind, states] : tensors.optimizer)
    if (const auto it = states.find(p.spec.name); it != states.end())  // else frozen
      add_rows(out, p, rows, it->second, kept.first, kind);
}

struct OwnedPiece {
  const LocalParameter* parameter;
  const HubPiece* piece;
};

std::vector<OwnedPiece> pieces_by_size(const std::vector<LocalParameter>& parameters, MeshAxis replicas) {
  std::vector<OwnedPiece> pieces;
  for (const LocalParameter& p : parameters)
    if (p.replicas == replicas)
      for (const HubPiece& piece : p.spec.pieces) pieces.push_back({&p, &piece});
  std::stable_sort(pieces.begin(), pieces.end(), [](const OwnedPiece& a, const OwnedPiece& b) {
    return a.piece->shape.num_elements() > b.piece->shape.num_elements();
  });
  return pieces;
}

/// The pieces that fall to this rank: the largest first, each to the replica with the least so far. Experts
/// before the rest, as fewer ranks can take them; ranks of one data rank have equally many, of equal sizes,
/// so that what one knows of its own column holds for all.
std::vector<OwnedPiece> deal_pieces(const std::vector<LocalParameter>& parameters, const MeshPosition& mesh) {
  std::vector<OwnedPiece> mine;
  std::vector<std::int64_t> by_data(static_cast<std::size_t>(mesh.size(MeshAxis::data)), 0);
  const auto deal = [&](MeshAxis axis, std::vector<std::int64_t>& load) {
    for (const OwnedPiece& owned : pieces_by_size(parameters, axis)) {
      const auto least = std::min_element(load.begin(), load.end());
      *least += owned.piece->shape.num_elements();
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

TensorRowsMap held_rows(const std::vector<LocalParameter>& parameters, const TensorMap& tensors) {
  TensorRowsMap held;
  for (const LocalParameter& p : parameters)
    add_rows(held, p, {0, p.spec.num_rows()}, tensors.at(p.spec.name), 0, {});
  return held;
}

TensorRowsMap held_weights(const TrainingTensors& tensors) {
  return held_rows(tensors.parameters, tensors.weights);
}

TensorRowsMap held_states(const TrainingTensors& tensors) {
  TensorRowsMap held;
  for (const LocalParameter& p : tensors.parameters) add_states(held, tensors, p, p.optimizer_rows);
  return held;
}

TensorRowsMap weights_to_write(const TrainingTensors& tensors, const MeshPosition& mesh) {
  TensorRowsMap mine;
  for (const auto& [p, piece] : deal_pieces(tensors.parameters, mesh))
    add_rows(mine, *p, {piece->first_row, piece_rows(*piece)}, tensors.weights.at(p->spec.name), 0, {});
  return mine;
}

TensorRowsMap states_to_write(const TrainingTensors& tensors, const MeshPosition& mesh) {
  TensorRowsMap mine;
  for (const LocalParameter& p : tensors.parameters)
    add_states(mine, tensors, p, part_of(p.spec.num_rows(), mesh.size(p.replicas), mesh.rank(p.replicas)));
  return mine;
}

std::string shard_name(std::string_view stem, const MeshPosition& mesh) {
  if (mesh.world_size == 1) return fmt::format("{}.safetensors", stem);
  return fmt::format("{}-{:05}-of-{:05}.safetensors", stem, mesh.world_rank + 1, mesh.world_size);
}

}  // namespace farskip
