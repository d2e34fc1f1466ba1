// SPDX-License-Identifier: Apache-2.0
#pragma once
// The parameters of a model, as its blocks add them.

#include "farskip/model/parameters.h"
#include "model/family.h"

namespace farskip {

/// A product with a matrix: MODULE.weight [outputs, inputs] and, perhaps, MODULE.bias [outputs].
struct LinearModule {
  std::string name;
  std::int64_t outputs = 0, inputs = 0;
  bool has_bias = false;
  Layout layout{};  // of the weight; of the bias too where it cuts the outputs

  std::string weight() const { return name + ".weight"; }
  std::string bias() const { return name + ".bias"; }
};

/// RMSNorm's weight [size].
struct NormModule {
  std::string name;
  std::int64_t size = 0;

  std::string weight() const { return name + ".weight"; }
};

class ParameterList {
 public:
  explicit ParameterList(const ModelConfig& config);

  /// What follows belongs to a block of a layer; -1: of none.
  void enter(std::int64_t layer, SubBlock block) {
    layer_ = layer;
    block_ = block;
  }
  /// `name` within the layer; the hub calls it so, too. The result is valid until the next one is added.
  ParameterSpec& add(std::string_view name, Shape shape, Initializer initializer = Initializer::normal);
  void add(const LinearModule& linear);
  ParameterSpec& add_weight(const LinearModule& linear);
  ParameterSpec& add_bias(const LinearModule& linear);
  void add(const NormModule& norm) { add(norm.weight(), {norm.size}, Initializer::ones); }
  /// The full name of a tensor within the layer.
  std::string full_name(std::string_view name) const;
  /// How the hub calls parts of MLPs.
  const MlpNames& mlp_names() const { return mlp_names_; }
  std::vector<ParameterSpec> take() { return std::move(specs_); }

 private:
  MlpNames mlp_names_;
  std::int64_t layer_ = -1;
  SubBlock block_ = SubBlock::none;
  std::vector<ParameterSpec> specs_;
};

}  // namespace farskip
