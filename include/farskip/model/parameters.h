#pragma once
// The tensors of a model: how they lie in memory, and under which names the hub's files hold them.

#include <cstdint>
#include <span>
#include <string>
#include <vector>

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
};

/// In order: embedding, layers, final norm, head (absent when tied).
std::vector<ParameterSpec> list_parameters(const ModelConfig& config);

/// Names used by the lowering.
std::string layer_name(std::int64_t layer, std::string_view suffix);
inline constexpr std::string_view kEmbeddingName = "model.embed_tokens.weight";
inline constexpr std::string_view kFinalNormName = "model.norm.weight";
inline constexpr std::string_view kHeadName = "lm_head.weight";

}  // namespace farskip
