// SPDX-License-Identifier: Apache-2.0
#pragma once
// How a LayerGraph becomes a Graph: what the blocks of layers (blocks/) have in common, and what lies around
// them. What serves attention stands in lower_attention.cpp, the rest in lower.cpp.

#include <map>
#include <unordered_map>

#include "farskip/model/cache.h"
#include "farskip/model/lower.h"
#include "model/parameter_list.h"
#include "ops/collective_ops.h"
#include "ops/inference_ops.h"

namespace farskip {

class Lowering {
 public:
  Lowering(const ModelConfig& config, const LayerGraph& layers, const LowerOptions& options)
      : c_(config), layers_(layers), options_(options), tokens_(options.batch * options.sequence_length) {}

  Graph run();
  /// As lower_block() says.
  Graph run_alone(const LayerBlock& block);

  // ---- for blocks
  Builder builder() { return {graph_, scope_}; }
  const LowerOptions& options() const { return options_; }
  std::int32_t layer() const { return scope_.layer; }
  ValueId layer_parameter(std::string_view suffix) const {
    return parameter(layer_name(scope_.layer, suffix));
  }
  /// The product with a module's weight, and its bias where it has one.
  ValueId linear(ValueId x, const LinearModule& module);
  /// The same where the inputs are cut over the ranks of the axis tensor: their products are summed.
  ValueId linear_of_parts(ValueId x, const LinearModule& module);
  /// Shared and routed experts read the same norm of the same stream: one op.
  ValueId normalised(ValueId x, ValueId weight);
  ValueId normalised(ValueId x, ValueId weight, double eps);
  /// Output "NAME.<layer>".
  void add_layer_output(std::string_view name, ValueId value);
  /// An output of a block that is lowered alone.
  void show(const char* name, ValueId value);
  /// Where it is asked for. `normalize`: scores of a token do not add up to one (ops::BalanceLoss).
  void add_balance_loss(const ops::RouteResult& routed, bool normalize);

  // ---- the axis tensor
  int num_parts() const { return options_.mesh.tensor_size; }
  /// Values that are whole on every rank, as the rank's own part of what follows reads them.
  std::vector<ValueId> for_parts(std::vector<ValueId> whole);
  ValueId for_parts(ValueId whole);
  /// What all ranks' parts add up to.
  ValueId sum_of_parts(ValueId part);
  std::int64_t own_heads() const { return c_.num_heads / num_parts(); }
  /// Whether each rank of the axis has some of the experts, and these whole.
  bool has_whole_experts() const { return num_parts() > 1 && options_.mesh.expert_size > 1; }
  Range own_experts(std::int64_t experts) const {
    return part_of(experts, num_parts(), options_.mesh.rank(MeshAxis::expert));
  }

  // ---- attention
  ValueId rotate(ValueId x, std::int64_t head_dim, std::int64_t offset);
  ValueId attention_temperature();
  /// Of heads that were computed on every rank, those of this rank.
  ValueId take_own_heads(ValueId x, std::int64_t heads);
  ValueId attend(ValueId q, ValueId k, ValueId v, std::int64_t kv_heads);
  bool has_cache() const { return options_.cache.has_value(); }
  /// Whether attention is over a cache; otherwise a cache is only written.
  bool reads_cache() const { return options_.cache && options_.cache->fresh_length == 0; }
  /// The cache of this layer, with these rows in it.
  ValueId cached(CacheKind kind, ValueId x, ValueId more = {});
  ValueId attend_cached(ValueId q, ValueId keys, ValueId values, std::int64_t kv_heads,
                        std::int64_t value_size);

 private:
  /// After the last block of a layer that was asked for: the sum of everything so far.
  void add_stream_output(std::size_t block);
  ValueId token_input(std::string_view name);
  ops::Replicas over_parts() const {
    return {.axis = MeshAxis::tensor, .size = num_parts(), .rank = options_.mesh.rank(MeshAxis::tensor)};
  }
  /// Each rank gives tensors of the same shapes → those of all ranks, one below the other.
  std::vector<ValueId> below_each_other(std::vector<ValueId> parts);
  /// Of the embedding or the head.
  ops::VocabularyPart vocabulary_part(std::string_view name) const;
  void add_parameter(const ParameterSpec& p);
  void add_cache_externals(const CacheShape& shape);
  ValueId parameter(std::string_view name) const;
  ValueId add_bias(ValueId y, const LinearModule& module);
  /// Sum of contributions in order. Lists that share a beginning share its sums.
  ValueId stream(const std::vector<int>& list);

  /// `x`: the stream that it reads.
  ValueId lower_block(SubBlock kind, ValueId x);
  void lower_head(ValueId x);
  /// `logits` of the ids here.
  ValueId whole_logits(ValueId logits);
  void lower_cut_losses(ValueId h, ValueId weight);
  void add_loss_outputs(const ops::LossResult& loss);
  ValueId rope_table();
  std::int64_t attention_chunk() const;

  const ModelConfig& c_;
  const LayerGraph& layers_;
  const LowerOptions& options_;
  const std::int64_t tokens_;
  Graph graph_;
  bool alone_ = false;
  Scope scope_;
  ValueId token_ids_, targets_, document_start_, rope_table_, temperature_, balance_loss_;
  ValueId cache_rows_, output_rows_;
  ops::CachePlace place_;
  std::unordered_map<std::string, ValueId> parameters_, caches_;
  std::vector<ValueId> contributions_;
  std::map<std::vector<int>, ValueId> sums_;
  std::map<std::pair<ValueId, ValueId>, ValueId> norms_;
  std::map<ValueId, ValueId> for_parts_;
};

}  // namespace farskip
