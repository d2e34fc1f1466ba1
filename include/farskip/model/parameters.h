// SPDX-License-Identifier: Apache-2.0
#pragma once
// The tensors of a model: how they lie in memory, and under which names the hub's files hold them.

#include <cstdint>
#include <functional>
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
};

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

/// What one rank holds of a parameter: all of it, or the experts that are its own.
struct LocalParameter {
  ParameterSpec spec;  // shape and pieces of the experts here; rows of pieces count from the first here
  std::int64_t first_row = 0;  // of the whole parameter, where the part here begins
  Shape full_shape;            // of the whole parameter
  /// Over the ranks that hold the same part (world, or data for experts): which of them updates which rows of
  /// `spec` with ZeRO, and writes them into checkpoints.
  RowCut owners;
  Range own_rows;  // of `spec`, whose optimizer state this rank keeps: all of them, or its part of `owners`
};

/// In the order of `specs`. Expert e lives on rank e / (E / expert_size) of the expert axis. `zero`:
/// optimizer state is dealt out to the replicas, by rows, or by whole matrices where `keeps_matrices` says
/// so. UsageError unless the expert axis divides the experts.
std::vector<LocalParameter> local_parameters(
    const std::vector<ParameterSpec>& specs, const MeshPosition& mesh, bool zero,
    const std::function<bool(const ParameterSpec&)>& keeps_matrices = {});

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
