// SPDX-License-Identifier: Apache-2.0
#pragma once
// The ops of one layer of a model at its sizes, as `farskip bench ops` times them.

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "farskip/graph/op.h"
#include "farskip/model/model_config.h"

namespace farskip {

/// What an op's time is held against, in the same run.
struct Ceiling {
  enum class Kind { product, copy } kind = Kind::product;
  /// product: a dense one of [m, k] and [k, n]; 0: a large square one, compared by rate. copy: by bytes.
  std::int64_t m = 0, n = 0, k = 0;
};

struct OpCase {
  std::string name;  // "experts up, balanced"
  std::string op;
  Attributes attributes;
  std::vector<TensorType> inputs;  // floating-point ones get random values
  /// Of the integer inputs, in their order.
  std::vector<std::vector<std::int32_t>> integers;
  Ceiling ceiling;
  /// Values of those f32 inputs that are not random, by input index.
  std::map<std::size_t, std::vector<float>> numbers{};
};

/// Rows of each expert: offsets i32[experts + 1] of `rows` rows, spread evenly, or by Zipf's law (expert e
/// gets a share of 1 / (e + 1)).
std::vector<std::int32_t> spread_rows(std::int64_t rows, std::int64_t experts, bool skewed);

/// Products in `low`, what runs beside them in it too; parameter gradients f32.
std::vector<OpCase> op_cases(const ModelConfig& model, std::int64_t tokens, std::int64_t sequence_length,
                             DType low);

}  // namespace farskip
