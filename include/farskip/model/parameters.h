// SPDX-License-Identifier: Apache-2.0
#pragma once
// The tensors of a model: how they lie in memory, and under which names the hub's files hold them.

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "farskip/base/mesh_position.h"
#include "farskip/model/model_config.h"
#include "farskip/tensor/tensor.h"

namespace farskip {

/// A hub tensor that is a run of rows of one of ours (seen as a matrix of its last dim).
struct HubPiece {
  std::string name;
  Shape shape;
  std::int64_t first_row = 0;  // rows of the parameter, all dims but the last taken together
  Range part{};                // on one rank of several: those of its rows that are here. Count 0: all

  Range rows() const { return part.count > 0 ? part : Range{0, row_count(shape)}; }
};

/// How a dim is dealt out over the ranks of an axis: it is `groups` equal parts, one behind the other, and
/// each of them is cut into as many equal, consecutive parts as there are ranks. Gate and up rows of one
/// matrix are two groups.
struct Cut {
  int dim = 0;
  MeshAxis axis = MeshAxis::tensor;
  std::int64_t groups = 1;
  std::int64_t heads = 0;           // that make up the dim, each of which stays whole. 0: elements may part
  bool whole_if_few_heads = false;  // fewer heads than ranks (a divisor of them): the tensor is not cut
  /// Where the ranks do not divide the dim (of one group, not of columns): the last part is filled up with
  /// rows that are zero and stay so, so that shapes are the same on every rank.
  bool padded = false;
};
/// Without cuts a tensor is whole on every rank.
using Layout = std::vector<Cut>;

enum class Initializer : std::uint8_t { normal, ones, zeros };

/// One parameter. Gate and up projections are one tensor (gate rows first), and so are all experts of a
/// layer, so that each is one product; `name` is then the hub's packed name.
struct ParameterSpec {
  std::string name;
  Shape shape;
  SubBlock block = SubBlock::none;
  std::int32_t layer = -1;
  bool is_expert = false;  // dim 0 is the expert
  Initializer initializer = Initializer::normal;
  /// Hub tensors that make it up, in order of rows; together they cover it exactly. One piece of the same
  /// name: not split on the hub.
  std::vector<HubPiece> pieces;
  bool is_router = false;  // decides on experts: always computed with in f32
  /// Rows of one matrix, where several lie below each other: gate and up of an MLP, experts. 0: it is one.
  std::int64_t matrix_rows = 0;
  bool is_trained = true;  // false: a buffer, which no gradient reaches and every file keeps in f32
  /// Of experts: the hub holds them all in one tensor of this name, in which the last two dims are swapped.
  /// Empty: it has them as pieces; a folder may hold them as one tensor of `name`.
  std::string packed_transposed{};
  /// Over the axes of a mesh. Experts that are dealt out over `expert` are not cut further.
  Layout layout{};
  /// How the names of tensors begin that may lie beside this one in a folder and carry nothing here.
  std::vector<std::string> passed_over{};

  /// The weight of a norm; other vectors are biases.
  bool is_norm() const { return initializer == Initializer::ones; }
  /// A bias per expert that takes part in the choice.
  bool is_router_bias() const { return !is_trained && block == SubBlock::routed; }
  /// Seen as a matrix: all dims but the last taken together, and the last. A vector has rows of one element.
  std::int64_t num_rows() const { return row_count(shape); }
  std::int64_t row_size() const { return farskip::row_size(shape); }
  /// Whether a model that computes in bf16 reads a bf16 copy of it, not the parameter itself: all matrices
  /// but the router.
  bool has_compute_copy() const { return shape.rank() >= 2 && !is_router; }
};

/// External under which such a copy is read ("compute.<parameter>").
std::string compute_copy_name(std::string_view parameter);
/// In graphs: those rows of a tensor of the parameter's rows that this rank updates ("own.<tensor>").
inline constexpr std::string_view kOwnRows = "own.";
std::string own_rows_name(std::string_view tensor);
/// Where the graphs of a model that computes in `compute` (f32, f64 or bf16) find the parameter.
std::string read_name(const ParameterSpec& spec, DType compute);

/// Rows of a whole parameter that lie together on one rank, too.
struct RowBlock {
  std::int64_t row = 0, whole_row = 0, count = 0;
};

/// What one rank holds of a parameter: all of it, or the part that its layout gives to the rank.
struct LocalParameter {
  ParameterSpec spec;  // shape of the part here; pieces that have rows here, whose first_row counts from it
  Shape full_shape;    // of the whole parameter
  std::vector<RowBlock> blocks;  // of the part here, in order; rows behind them are padding
  Range columns;                 // of whole rows
  /// Over the ranks that hold the same part (batch, or data for experts): which of them updates which rows of
  /// `spec` with ZeRO, and writes them into checkpoints.
  RowCut owners;
  Range own_rows;  // of `spec`, whose optimizer state this rank keeps: all of them, or its part of `owners`
  /// What it keeps of own_rows alone, by levels of ZeRO: 1 optimizer state; 2 also gradients, and the f32
  /// weight where another copy of it computes; 3 also matrices that compute. 0: nothing.
  int zero = 0;
  /// Over which axis ranks have other parts of it; batch or data: over none.
  std::optional<MeshAxis> cut_axis;

  /// Of the whole parameter. Behind the last row here: that number.
  std::int64_t whole_row(std::int64_t row) const;
  bool has_whole_rows() const { return columns.count == farskip::row_size(full_shape); }
  /// Rows here that the whole parameter does not have (Cut::padded): the last ones.
  Range padding() const;
  /// Calls f(local row, row of the whole parameter, count) for the blocks of local rows [first, first +
  /// count).
  void for_each_block(std::int64_t first, std::int64_t count,
                      const std::function<void(std::int64_t, std::int64_t, std::int64_t)>& f) const;
};

/// In the order of `specs`. `zero`: what is dealt out to the replicas (LocalParameter::zero), by rows, or by
/// whole matrices where `keeps_matrices` says so. UsageError unless the axes divide what they cut.
std::vector<LocalParameter> local_parameters(
    const std::vector<ParameterSpec>& specs, const MeshPosition& mesh, int zero,
    const std::function<bool(const ParameterSpec&)>& keeps_matrices = {});
/// The shape of a rank's part.
Shape local_shape(const ParameterSpec& spec, const MeshPosition& mesh);

/// In order: embedding, layers, final norm, head (absent when tied).
std::vector<ParameterSpec> list_parameters(const ModelConfig& config);

/// The tensor that the head multiplies with.
std::string_view head_name(const ModelConfig& config);

/// Names used by the lowering.
std::string layer_name(std::int64_t layer, std::string_view suffix);
inline constexpr std::string_view kEmbeddingName = "model.embed_tokens.weight";
inline constexpr std::string_view kFinalNormName = "model.norm.weight";
inline constexpr std::string_view kHeadName = "lm_head.weight";

}  // namespace farskip
