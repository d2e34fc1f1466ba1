// SPDX-License-Identifier: Apache-2.0
#include "checkpoint/checkpoint_shards.h"

#include <algorithm>
#include <cstring>

#include "state/state_names.h"
#include "tensor/columns.h"

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

/// This rank's part of a whole piece, of which `taker` of the ranks with the other parts gets all.
void add_shared(TensorRowsMap& out, const States& states, const StateSpec& spec, const HubPiece& piece,
                int taker, std::optional<int> writer) {
  const LocalParameter& p = *spec.parameter;
  const std::int64_t count = piece.rows().count;
  RowCut parts{p.owners.axis, {}};
  for (const std::int64_t bound : p.owners.bounds)
    parts.bounds.push_back(std::clamp<std::int64_t>(bound - piece.first_row, 0, count));
  const std::int64_t first = std::max(spec.rows().first, piece.first_row),
                     end = std::min(spec.rows().end(), piece.first_row + count);
  const TensorView here = states.at(spec.name);
  std::vector<std::int64_t> dims = piece.shape.dims();
  dims[0] = std::max<std::int64_t>(end - first, 0);
  if (dims.size() > 1) dims[1] = p.columns.count;
  const auto offset = static_cast<std::size_t>((first - spec.rows().first) * p.spec.row_size());
  TensorRows rows{piece.shape,
                  piece.rows().first,
                  p.columns,
                  {dims[0] == 0 ? here.data : here.as<std::byte>() + offset * dtype_size(spec.dtype),
                   spec.dtype, Shape(std::move(dims))},
                  spec.role == Role::constant,
                  writer};
  rows.shared = {std::move(parts), taker};
  out[piece.name] = std::move(rows);
}

struct OwnedPiece {
  const StateSpec* weight;
  const HubPiece* piece;
  int writer = 0;        // of the axis over which it is dealt
  bool is_mine = false;  // falls to this rank or, cut, to one of its tensor group
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
/// rank have equally many, of equal sizes, so that what one knows of its own column holds for all.
std::vector<OwnedPiece> deal_pieces(const States& states, const MeshPosition& mesh) {
  std::vector<OwnedPiece> dealt;
  std::vector<std::int64_t> by_data(static_cast<std::size_t>(mesh.size(MeshAxis::data)), 0);
  const auto deal = [&](bool dealt_out, MeshAxis axis, std::vector<std::int64_t>& load) {
    for (OwnedPiece owned : pieces_by_size(states, dealt_out)) {
      const auto least = std::min_element(load.begin(), load.end());
      *least += owned.num_bytes();
      owned.writer = static_cast<int>(least - load.begin());
      const bool in_group = owned.writer / mesh.tensor_size == mesh.rank(MeshAxis::batch);
      owned.is_mine = is_cut(*owned.weight) ? in_group : owned.writer == mesh.rank(axis);
      dealt.push_back(owned);
    }
  };
  deal(true, MeshAxis::data, by_data);
  std::vector<std::int64_t> by_rank;
  for (const std::int64_t load : by_data)
    by_rank.insert(by_rank.end(), mesh.world_size / mesh.size(MeshAxis::data), load);
  deal(false, MeshAxis::world, by_rank);
  return dealt;
}

bool is_in_parts(const StateSpec& spec) {
  return spec.own_rows_only && spec.parameter->owners.bounds.size() > 2;
}

std::size_t row_bytes(const TensorRows& rows) {
  return static_cast<std::size_t>(row_size(rows.view.shape)) * dtype_size(rows.view.dtype);
}

}  // namespace

TensorRowsMap held_rows(const States& states, Role role) {
  TensorRowsMap held;
  for (const StateSpec& spec : states.specs())
    if (spec.role == role && (role != Role::compute_copy || is_filled_by_itself(spec)))
      add_rows(held, states, spec, spec.rows());
  return held;
}

TensorRowsMap weights_to_write(const States& states, const MeshPosition& mesh) {
  TensorRowsMap mine;
  for (const auto& [weight, piece, writer, is_mine] : deal_pieces(states, mesh)) {
    const int in_group = is_dealt_out(*weight) ? mesh.rank(MeshAxis::tensor) : writer % mesh.tensor_size;
    const auto joins = is_cut(*weight) ? std::optional(in_group) : std::nullopt;
    if (!is_in_parts(*weight)) {
      if (is_mine) add_rows(mine, states, *weight, {piece->first_row, piece->rows().count}, joins);
    } else if (is_cut(*weight) || in_group == mesh.rank(MeshAxis::tensor)) {
      // Of what is whole in a tensor group, the ranks beside the writer have the parts.
      add_shared(mine, states, *weight, *piece, is_dealt_out(*weight) ? writer : writer / mesh.tensor_size,
                 joins);
    }
  }
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
  if (rows.shared && rows.shared->taker != mesh.rank(rows.shared->parts.axis)) return 0;
  if (rows.writer && *rows.writer != mesh.rank(MeshAxis::tensor)) return 0;
  const std::size_t here = rows.shared
                               ? static_cast<std::size_t>(rows.shared->parts.num_rows()) * row_bytes(rows)
                               : rows.view.num_bytes();
  return rows.writer ? here * static_cast<std::size_t>(mesh.tensor_size) : here;
}

namespace {

/// All of the rows, or the rows whole: blocks of equal size, in order of ranks. Of rows the last block may
/// have more than there are.
void put_block(const TensorView& block, int rank, bool by_columns, const TensorView& whole) {
  if (!by_columns) {
    const std::int64_t first = rank * block.shape[0], rows = std::min(block.shape[0], whole.shape[0] - first);
    const TensorView to = rows_view(whole, first, rows);
    std::memcpy(to.data, block.data, to.num_bytes());
    return;
  }
  const std::int64_t width = row_size(block.shape), row = row_size(whole.shape);
  copy_columns<float>({block.as<float>(), width}, {whole.as<float>() + rank * width, row}, block.shape[0],
                      width);
}

/// All rows, from the ranks that have a part each of them.
HostTensor join_rows(const TensorRows& part, const Communicator& group, Device& device) {
  const HostTensor own = copy_to_host(device, part.view);
  const RowCut& parts = part.shared->parts;
  std::vector<std::int64_t> offsets;
  for (const std::int64_t bound : parts.bounds)
    offsets.push_back(bound * static_cast<std::int64_t>(row_bytes(part)));
  HostTensor whole(part.view.dtype, shape_of_rows(part.view.shape, parts.num_rows()));
  group.start_all_gather(std::span<const std::byte>(own.bytes()), offsets, whole.bytes()).wait();
  return whole;
}

HostTensor join_part(const TensorRows& part, const HostTensor& stored, const Communicator& tensor) {
  const HostTensor own = convert_dtype(stored, DType::f32);  // of bf16 exactly
  const bool by_columns = !part.has_whole_rows();
  const std::int64_t ranks = tensor.size();
  std::vector<std::int64_t> block = part.view.shape.dims(), dims = part.full_shape.dims();
  if (by_columns)
    dims[0] = part.num_rows();
  else
    block[0] = (dims[0] + ranks - 1) / ranks;  // the last part may be smaller (Cut::padded)
  const Shape shape(std::move(block));
  const std::int64_t count = shape.num_elements();
  std::vector<float> padded(static_cast<std::size_t>(count), 0.0F);
  std::copy(own.values<float>().begin(), own.values<float>().end(), padded.begin());
  std::vector<std::int64_t> offsets;
  for (std::int64_t r = 0; r <= ranks; ++r) offsets.push_back(r * count);
  HostTensor all(DType::f32, Shape{ranks * count});
  tensor.start_all_gather(std::span<const float>(padded), offsets, all.values<float>()).wait();
  HostTensor whole(DType::f32, Shape(std::move(dims)));
  for (int r = 0; r < ranks; ++r)
    put_block({all.view().as<float>() + r * count, DType::f32, shape}, r, by_columns, whole.view());
  return whole;
}

}  // namespace

void join_parts(TensorRowsMap& rows, const Mesh& mesh, Device& device,
                std::map<std::string, HostTensor>& storage) {
  for (auto it = rows.begin(); it != rows.end();) {
    auto& [name, part] = *it;
    const auto keep = [&](HostTensor whole) { part.view = (storage[name] = std::move(whole)).view(); };
    bool writes = true;
    if (part.shared) {
      const Communicator& group = mesh.group(part.shared->parts.axis);
      HostTensor whole = join_rows(part, group, device);
      writes = part.shared->taker == group.rank();
      part.shared.reset();
      if (writes) keep(std::move(whole));
    }
    if (writes && part.writer) {
      const HostTensor own = storage.contains(name) ? storage.at(name) : copy_to_host(device, part.view);
      HostTensor whole = convert_dtype(join_part(part, own, mesh.tensor()), part.view.dtype);
      writes = *part.writer == mesh.tensor().rank();
      if (part.has_whole_rows()) part.first_row = 0;
      part.columns = {0, row_size(part.full_shape)};
      if (writes) keep(std::move(whole));
      part.writer.reset();
    }
    if (!writes) storage.erase(name);
    it = writes ? std::next(it) : rows.erase(it);
  }
}

std::string shard_name(std::string_view stem, const MeshPosition& mesh) {
  if (mesh.world_size == 1) return fmt::format("{}.safetensors", stem);
  return fmt::format("{}-{:05}-of-{:05}.safetensors", stem, mesh.world_rank + 1, mesh.world_size);
}

}  // namespace farskip
