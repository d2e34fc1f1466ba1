// SPDX-License-Identifier: Apache-2.0
#pragma once
// How a LayerGraph becomes a Graph. Attention stands in lower_attention.cpp, the rest in lower.cpp.

#include <map>
#include <unordered_map>

#include "farskip/model/cache.h"
#include "farskip/model/lower.h"
#include "ops/inference_ops.h"

namespace farskip {

class Lowering {
 public:
  Lowering(const ModelConfig& config, const LayerGraph& layers, const LowerOptions& options)
      : c_(config), layers_(layers), options_(options), tokens_(options.batch * options.sequence_length) {}

  Graph run();
  /// As lower_block() says.
  Graph run_alone(const LayerBlock& block);

 private:
  Builder builder() { return {graph_, scope_}; }

  /// After the last block of a layer that was asked for: the sum of everything so far.
  void add_stream_output(std::size_t block);
  ValueId token_input(std::string_view name);

  // ---- the axis tensor
  int num_parts() const { return options_.mesh.tensor_size; }
  ops::Replicas over_parts() const {
    return {.axis = MeshAxis::tensor, .size = num_parts(), .rank = options_.mesh.rank(MeshAxis::tensor)};
  }
  /// Values that are whole on every rank, as the rank's own part of what follows reads them.
  std::vector<ValueId> for_parts(std::vector<ValueId> whole);
  ValueId for_parts(ValueId whole);
  /// What all ranks' parts add up to.
  ValueId sum_of_parts(ValueId part);
  /// Each rank gives tensors of the same shapes → those of all ranks, one below the other.
  std::vector<ValueId> below_each_other(std::vector<ValueId> parts);
  /// Of the embedding or the head.
  ops::VocabularyPart vocabulary_part(std::string_view name) const;
  std::int64_t own_heads() const { return c_.num_heads / num_parts(); }
  void add_parameter(const ParameterSpec& p);
  /// An output of a block that is lowered alone.
  void show(const char* name, ValueId value);
  void add_cache_externals(const CacheShape& shape);
  ValueId parameter(std::string_view name) const;
  ValueId layer_parameter(std::string_view suffix) const {
    return parameter(layer_name(scope_.layer, suffix));
  }
  /// The product with a module's weight, and its bias where the model has one.
  ValueId linear(ValueId x, const std::string& module);
  /// The same where the inputs are cut over the ranks of the axis tensor: their products are summed.
  ValueId linear_of_parts(ValueId x, const std::string& module);
  ValueId add_module_bias(ValueId y, const std::string& module);
  /// A projection of attention.
  ValueId project(ValueId x, std::string_view part) { return linear(x, fmt::format("self_attn.{}", part)); }
  /// Sum of contributions in order. Lists that share a beginning share its sums.
  ValueId stream(const std::vector<int>& list);
  /// Shared and routed experts read the same norm of the same stream: one op.
  ValueId normalised(ValueId x, ValueId weight);
  ValueId normalised(ValueId x, ValueId weight, double eps);

  /// `x`: the stream that it reads.
  ValueId lower_block(SubBlock kind, ValueId x);
  ValueId mlp(ValueId h, const std::string& module);
  ValueId routed_experts(ValueId h);
  void add_balance_loss(Builder& b, const ops::RouteResult& routed);
  void lower_head(ValueId x);
  /// `logits` of the ids here.
  ValueId whole_logits(ValueId logits);
  void lower_cut_losses(ValueId h, ValueId weight);
  void add_loss_outputs(const ops::LossResult& loss);

  // ---- attention; `h` is what the projections of the layer read
  ValueId rope_table();
  ValueId rotate(ValueId x, std::int64_t head_dim, std::int64_t offset);
  ValueId attention_temperature();
  std::int64_t attention_chunk() const;
  ops::MlaKeyValue head_parts(const MlaConfig& mla) const {
    return {own_heads(), mla.nope_dim, mla.rope_dim, mla.v_dim};
  }
  ValueId latent_attention(ValueId h, const MlaConfig& mla);
  ValueId grouped_query_attention(ValueId h);
  /// Of heads that were computed on every rank, those of this rank.
  ValueId take_own_heads(ValueId x, std::int64_t heads);
  ValueId attend(ValueId q, ValueId k, ValueId v, std::int64_t kv_heads);
  /// Whether attention is over a cache; otherwise a cache is only written.
  bool reads_cache() const { return options_.cache && options_.cache->fresh_length == 0; }
  /// The cache of this layer, with these rows in it.
  ValueId cached(CacheKind kind, ValueId x, ValueId more = {});
  ValueId attend_cached(ValueId q, ValueId keys, ValueId values, std::int64_t kv_heads,
                        std::int64_t value_size);
  /// Over the latents themselves: neither keys nor values are formed.
  ValueId attend_absorbed(ValueId q, ValueId latents, const MlaConfig& mla);
  /// What the heads give becomes the contribution of the block.
  ValueId attention_output(ValueId h, ValueId heads);

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
