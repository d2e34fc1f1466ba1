// SPDX-License-Identifier: Apache-2.0
// Which part of each parameter a rank holds.

#include <map>

#include "farskip/model/parameters.h"

namespace farskip {
namespace {

/// The cuts that a mesh makes.
Layout layout_on(const ParameterSpec& spec, const MeshPosition& mesh) {
  Layout layout;
  for (const Cut& cut : spec.layout) {
    const int ranks = mesh.size(cut.axis);
    const bool whole_experts = spec.is_expert && mesh.expert_size > 1 && cut.axis == MeshAxis::tensor;
    const bool few_heads = cut.whole_if_few_heads && cut.heads < ranks && ranks % cut.heads == 0;
    if (ranks > 1 && !whole_experts && !few_heads) layout.push_back(cut);
  }
  return layout;
}

std::int64_t ceil_div(std::int64_t n, std::int64_t parts) {
  return (n + parts - 1) / parts;
}

void check_divides(const ParameterSpec& spec, const Cut& cut, int ranks) {
  const std::int64_t size =
      cut.heads > 0 ? cut.heads : spec.shape[static_cast<std::size_t>(cut.dim)] / cut.groups;
  if (size % ranks == 0) return;
  if (cut.padded && ceil_div(size, ranks) * (ranks - 1) < size) return;
  if (cut.padded)
    throw UsageError(
        fmt::format("parallel.tensor is {}, which leaves a rank without any of the {} rows of {}; use less",
                    ranks, size, spec.name));
  if (cut.axis == MeshAxis::expert)
    throw UsageError(fmt::format(
        "parallel.expert is {}, which does not divide the {} experts of a layer; use a divisor of {}", ranks,
        size, size));
  throw UsageError(
      fmt::format("parallel.tensor is {}, which does not divide the {}{} of {}; use a divisor of {}", ranks,
                  size, cut.heads > 0 ? " heads" : "", spec.name, size));
}

bool is_column_cut(const ParameterSpec& spec, const Cut& cut) {
  return spec.shape.rank() > 1 && cut.dim == static_cast<int>(spec.shape.rank()) - 1;
}

/// The rows that a cut of a dim of rows leaves.
std::vector<RowBlock> cut_rows(const ParameterSpec& spec, const Cut& cut, const MeshPosition& mesh) {
  const auto dim = static_cast<std::size_t>(cut.dim);
  std::int64_t outer = 1, inner = 1;
  for (std::size_t d = 0; d < dim; ++d) outer *= spec.shape[d];
  for (std::size_t d = dim + 1; d + 1 < spec.shape.rank(); ++d) inner *= spec.shape[d];
  const std::int64_t group = spec.shape[dim] / cut.groups * inner;
  std::vector<RowBlock> blocks;
  if (cut.padded) {
    const std::int64_t rows = ceil_div(group, mesh.size(cut.axis)), first = mesh.rank(cut.axis) * rows;
    return {{0, first, std::min(rows, group - first)}};
  }
  const Range part = part_of(group, mesh.size(cut.axis), mesh.rank(cut.axis));
  for (std::int64_t g = 0; g < outer * cut.groups; ++g)
    blocks.push_back({g * part.count, g * group + part.first, part.count});
  return blocks;
}

std::vector<HubPiece> pieces_of(const LocalParameter& p) {
  std::vector<HubPiece> pieces;
  for (const HubPiece& piece : p.spec.pieces)
    for (const RowBlock& block : p.blocks) {
      const std::int64_t from = std::max(block.whole_row, piece.first_row),
                         upto = std::min(block.whole_row + block.count,
                                         piece.first_row + row_count(piece.shape));
      if (from < upto)
        pieces.push_back({piece.name,
                          piece.shape,
                          block.row + from - block.whole_row,
                          {from - piece.first_row, upto - from}});
    }
  return pieces;
}

LocalParameter cut_parameter(const ParameterSpec& spec, const MeshPosition& mesh) {
  LocalParameter p{.spec = spec,
                   .full_shape = spec.shape,
                   .blocks = {{0, 0, spec.num_rows()}},
                   .columns = {0, spec.row_size()},
                   .owners = {},
                   .own_rows = {},
                   .zero = 0,
                   .cut_axis = {}};
  std::vector<std::int64_t> dims = spec.shape.dims();
  for (const Cut& cut : layout_on(spec, mesh)) {
    FARSKIP_CHECK(!p.cut_axis, "{} is cut twice", spec.name);
    check_divides(spec, cut, mesh.size(cut.axis));
    p.cut_axis = cut.axis;
    std::int64_t& dim = dims[static_cast<std::size_t>(cut.dim)];
    dim = ceil_div(dim, mesh.size(cut.axis));
    if (is_column_cut(spec, cut))
      p.columns = part_of(spec.row_size(), mesh.size(cut.axis), mesh.rank(cut.axis));
    else
      p.blocks = cut_rows(spec, cut, mesh);
  }
  p.spec.shape = Shape(std::move(dims));
  if (p.cut_axis) p.spec.pieces = pieces_of(p);
  if (spec.matrix_rows > 0 && p.cut_axis && *p.cut_axis != MeshAxis::expert && p.has_whole_rows())
    p.spec.matrix_rows /= mesh.size(*p.cut_axis);
  return p;
}

/// Deals matrices out to replicas: evenly where there are as many as replicas, else to those that have least
/// so far.
class MatrixDealer {
 public:
  RowCut deal(const ParameterSpec& spec, MeshAxis axis, int ranks) {
    const std::int64_t rows = spec.num_rows(), unit = spec.matrix_rows > 0 ? spec.matrix_rows : rows;
    const std::int64_t matrices = rows / unit;
    if (matrices >= ranks) return cut_evenly(axis, rows, ranks, unit);
    std::vector<std::int64_t>& load = loads_[axis];
    load.resize(static_cast<std::size_t>(ranks));
    std::vector<bool> takes(load.size());
    for (std::int64_t m = 0; m < matrices; ++m) {
      std::size_t least = load.size();
      for (std::size_t r = 0; r < load.size(); ++r)
        if (!takes[r] && (least == load.size() || load[r] < load[least])) least = r;
      takes[least] = true;
      load[least] += unit * spec.row_size();
    }
    RowCut cut{axis, {0}};
    for (const bool one : takes) cut.bounds.push_back(cut.bounds.back() + (one ? unit : 0));
    return cut;
  }

 private:
  std::map<MeshAxis, std::vector<std::int64_t>> loads_;
};

}  // namespace

std::vector<LocalParameter> local_parameters(
    const std::vector<ParameterSpec>& specs, const MeshPosition& mesh, int zero,
    const std::function<bool(const ParameterSpec&)>& keeps_matrices) {
  std::vector<LocalParameter> local;
  MatrixDealer dealer;
  for (const ParameterSpec& spec : specs) {
    LocalParameter p = cut_parameter(spec, mesh);
    const MeshAxis axis = spec.is_expert ? MeshAxis::data : MeshAxis::batch;
    p.owners = keeps_matrices && keeps_matrices(spec) ? dealer.deal(p.spec, axis, mesh.size(axis))
                                                      : cut_evenly(axis, p.spec.num_rows(), mesh.size(axis));
    p.own_rows = zero > 0 ? p.owners.part(mesh.rank(axis)) : Range{0, p.spec.num_rows()};
    p.zero = zero;
    local.push_back(std::move(p));
  }
  return local;
}

Shape local_shape(const ParameterSpec& spec, const MeshPosition& mesh) {
  return cut_parameter(spec, mesh).spec.shape;
}

Range LocalParameter::padding() const {
  const std::int64_t first = blocks.back().row + blocks.back().count;
  return {first, spec.num_rows() - first};
}

std::int64_t LocalParameter::whole_row(std::int64_t row) const {
  for (const RowBlock& block : blocks)
    if (row < block.row + block.count) return block.whole_row + row - block.row;
  return row;
}

void LocalParameter::for_each_block(
    std::int64_t first, std::int64_t count,
    const std::function<void(std::int64_t, std::int64_t, std::int64_t)>& f) const {
  for (const RowBlock& block : blocks) {
    const std::int64_t from = std::max(first, block.row),
                       upto = std::min(first + count, block.row + block.count);
    if (from < upto) f(from, block.whole_row + from - block.row, upto - from);
  }
}

}  // namespace farskip
