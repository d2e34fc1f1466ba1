// SPDX-License-Identifier: Apache-2.0
#pragma once
// A sub-block of a layer: which parameters it has, and what it computes with them. Each name stands in one
// file, so that another kind of attention or MLP is a file and a line of make_block().

#include <memory>
#include <string>
#include <vector>

#include "farskip/model/parameters.h"
#include "model/lowering.h"
#include "model/parameter_list.h"

namespace farskip {

class Block {
 public:
  virtual ~Block() = default;
  /// Adds its parameters, but not the norm before it.
  virtual void list(ParameterList& list) const = 0;
  /// What it adds to the residual stream, of which it reads `h` [B*S, H], normed.
  virtual ValueId lower(Lowering& to, ValueId h) const = 0;
  /// Parameters whose matrices read the normed stream, as layer_name() takes them.
  virtual std::vector<std::string> readers() const = 0;
  /// The parameter whose matrices write what it adds.
  virtual std::string writer() const = 0;
};

/// Attention, dense, shared or routed.
std::unique_ptr<Block> make_block(const ModelConfig& config, SubBlock kind);

std::unique_ptr<Block> make_grouped_query_attention(const ModelConfig& config);
std::unique_ptr<Block> make_latent_attention(const ModelConfig& config);
/// `kind`: dense or shared.
std::unique_ptr<Block> make_mlp(const ModelConfig& config, SubBlock kind);
std::unique_ptr<Block> make_routed_experts(const ModelConfig& config);

}  // namespace farskip
