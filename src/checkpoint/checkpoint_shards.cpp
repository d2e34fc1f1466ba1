// SPDX-License-Identifier: Apache-2.0
#include "farskip/checkpoint/checkpoint_shards.h"

#include <algorithm>
#include <cstring>

#include "farskip/state/state_names.h"

namespace farskip {
namespace {

/// Adds some rows of a parameter's state, cut at the borders of its hub tensors. The state holds them.
void add_rows(TensorRowsMap& out, const States& states, const StateSpec& spec, const Range& rows,
              std::optional<int> writer = {}) {
  const LocalParameter& p = *spec.parameter;
  const Range kept = spec.rows();
  FARSKIP_CHECK(rows.count == 0 || (kept.first <= rows.first && rows.end() <= kept.end()),
                "rank keeps rows {} to {} of {}, not {} to {}", kept.first, kept.end(), spec.name, rows.first,
                rows.end());
  for (const HubPiece& piece : p.spec.pieces) {
    FARSKIP_CHECK(piece.shape.rank() == 1 || piece.shape.rank() == 2, "{} {}", piece.name,
                  piece.shape.text());
    const std::int64_t first = std::max(rows.first, piece.first_row);
    const std::int64_t end = std::min(rows.end(), piece.first_row + piece.rows().count);
    if (first >= end) continue;
    std::vector<std::int64_t> dims = piece.shape.dims();
    dims[0] = end - first;
    if (dims.size() > 1) dims[1] = p.columns.count;
    const auto offset =
        static_cast<std::size_t>((first - kept.first) * p.spec.row_size()) * dtype_size(spec.dtype);
    out[state_name(spec.kind, piece.name)] = {
        piece.shape,
        piece.rows().first + first - piece.first_row,
        p.columns,
        {states.at(spec.name).as<std::byte>() + offset, spec.dtype, Shape(std::move(dims))},
        spec.role == Role::constant,
        writer};
  }
}

struct OwnedPiece {
  const StateSpec* weight;
  const HubPiece* piece;
  int writer = 0;  // of the axis over which it is dealt
  std::int64_t num_bytes() const {
    return piece->shape.num_elements() * static_cast<std::int64_t>(dtype_size(weight->dtype));
  }
};

bool is_dealt_out(const StateSpec& spec) {
  return spec.parameter->cut_axis == MeshAxis::expert;
}
bool is_cut(const StateSpec& spec) {
  return spec.parameter->cut_axis == MeshAxis::tensor;
}

std::vector<OwnedPiece> pieces_by_size(const States& states, bool dealt_out) {
  std::vector<OwnedPiece> pieces;
  for (const StateSpec& spec : states.specs())
    if (holds_parameter(spec) && is_dealt_out(spec) == dealt_out)
      for (const HubPiece& piece : spec.parameter->spec.pieces) pieces.push_back({&spec, &piece});
  std::stable_sort(pieces.begin(), pieces.end(),
                   [](const OwnedPiece& a, const OwnedPiece& b) { return a.num_bytes() > b.num_bytes(); });
  return pieces;
}

/// The pieces of this rank and the ranks that may write them: the largest first, each to the rank with the
/// least so far. Experts that are dealt out before the rest, as fewer ranks can take them; ranks of one data
/// rank have equally many, of equal sizes, so that what one knows of its own column holds for all. Returns
/// those that fall to this rank or, cut, to one of its tensor group.
std::vector<OwnedPiece> deal_pieces(const States& states, const MeshPosition& mesh) {
  std::vector<OwnedPiece> mine;
  std::vector<std::int64_t> by_data(static_cast<std::size_t>(mesh.size(MeshAxis::data)), 0);
  const auto deal = [&](bool dealt_out, MeshAxis axis, std::vector<std::int64_t>& load) {
    for (OwnedPiece owned : pieces_by_size(states, dealt_out)) {
      const auto least = std::min_element(load.begin(), load.end());
      *least += owned.num_bytes();
      owned.writer = static_cast<int>(least - load.begin());
      const bool in_group = owned.writer / mesh.tensor_size == mesh.rank(MeshAxis::batch);
      if (is_cut(*owned.weight) ? in_group : owned.writer == mesh.rank(axis)) mine.push_back(owned);
    }
  };
  deal(true, MeshAxis::data, by_data);
  std::vector<std::int64_t> by_rank;
  for (const std::int64_t load : by_data)
    by_rank.insert(by_rank.end(), mesh.world_size / mesh.size(MeshAxis::data), load);
  deal(false, MeshAxis::world, by_rank);
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
  for (const auto& [weight, piece, writer] : deal_pieces(states, mesh))
    add_rows(mine, states, *weight, {piece->first_row, piece->rows().count},
             is_cut(*weight) ? std::optional(writer % mesh.tensor_size) : std::nullopt);
  return mine;
}

// Ranks of a tensor group have the same rows of what is not cut, and of what is cut by columns: they take
// turns at writing.
TensorRowsMap optimizer_to_write(const States& states, const MeshPosition& mesh) {
  TensorRowsMap mine;
  int turn = 0;
  for (const StateSpec& spec : states.specs()) {
    if (spec.role != Role::optimizer) continue;
    const LocalParameter& p = *spec.parameter;
    const Range own = p.owners.part(mesh.rank(p.owners.axis));
    const int writer = turn++ % mesh.tensor_size;
    if (p.cut_axis && !p.has_whole_rows())
      add_rows(mine, states, spec, own, writer);
    else if (p.cut_axis || writer == mesh.rank(MeshAxis::tensor))
      add_rows(mine, states, spec, own);
  }
  return mine;
}

std::size_t bytes_to_write(const TensorRows& rows, const MeshPosition& mesh) {
  if (!rows.writer) return rows.view.num_bytes();
  if (*rows.writer != mesh.rank(MeshAxis::tensor)) return 0;
  return rows.view.num_bytes() * static_cast<std::size_t>(mesh.tensor_size);
}

namespace {

/// All of the rows, or the rows whole: blocks of equal size, in order of ranks.
void put_block(const TensorView& block, int rank, bool by_columns, const TensorView& whole) {
  if (!by_columns) {
    const std::int64_t rows = block.shape[0];
    std::memcpy(rows_view(whole, rank * rows, rows).data, block.data, block.num_bytes());
    return;
  }
  const std::int64_t width = row_size(block.shape), row = row_size(whole.shape);
  for (std::int64_t r = 0; r < block.shape[0]; ++r)
    std::copy_n(block.as<float>() + r * width, width, whole.as<float>() + r * row + rank * width);
}

HostTensor join_part(const TensorRows& part, const Communicator& tensor, Device& device) {
  const HostTensor own = convert_dtype(copy_to_host(device, part.view), DType::f32);  // of bf16 exactly
  const std::int64_t count = part.view.num_elements(), ranks = tensor.size();
  std::vector<std::int64_t> offsets;
  for (std::int64_t r = 0; r <= ranks; ++r) offsets.push_back(r * count);
  HostTensor all(DType::f32, Shape{ranks * count});
  tensor.start_all_gather(own.values<float>(), offsets, all.values<float>()).wait();
  const bool by_columns = !part.has_whole_rows();
  std::vector<std::int64_t> dims = part.full_shape.dims();
  dims[0] = by_columns ? part.num_rows() : part.num_rows() * ranks;
  HostTensor whole(DType::f32, Shape(std::move(dims)));
  for (int r = 0; r < ranks; ++r)
    put_block({all.view().as<float>() + r * count, DType::f32, part.view.shape}, r, by_columns, whole.view());
  return whole;
}

}  // namespace

void join_parts(TensorRowsMap& rows, const Communicator& tensor, Device& device,
                std::map<std::string, HostTensor>& storage) {
  for (auto it = rows.begin(); it != rows.end();) {
    auto& [name, part] = *it;
    if (!part.writer) {
      ++it;
      continue;
    }
    HostTensor whole = convert_dtype(join_part(part, tensor, device), part.view.dtype);
    if (*part.writer != tensor.rank()) {
      it = rows.erase(it);
      continue;
    }
    if (part.has_whole_rows()) part.first_row = 0;
    part.columns = {0, row_size(part.full_shape)};
    part.view = (storage[name] = std::move(whole)).view();
    part.writer.reset();
    ++it;
  }
}

std::string shard_name(std::string_view stem, const MeshPosition& mesh) {
  if (mesh.world_size == 1) return fmt::format("{}.safetensors", stem);
  return fmt::format("{}-{:05}-of-{:05}.safetensors", stem, mesh.world_rank + 1, mesh.world_size);
}

}  // namespace farskip
