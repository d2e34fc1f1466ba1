// SPDX-License-Identifier: Apache-2.0
#include "farskip/model/lower.h"

#include <algorithm>
#include <numeric>

#include "model/blocks/block.h"
#include "ops/collective_ops.h"

namespace farskip {
namespace {

/// Without the exchange of routed rows, for which a pass splits the experts (passes/shard_experts.h).
MeshPosition tensor_axis(MeshPosition mesh) {
  if (mesh.exchange_size() > 1) mesh.expert_size = 1;
  return mesh;
}

}  // namespace

Graph Lowering::run() {
  token_ids_ = token_input("tokens");
  if (options_.cache)
    add_cache_externals(*options_.cache);
  else if (options_.head != HeadOutput::logits)
    targets_ = token_input("targets");
  if (options_.document_mask) document_start_ = token_input("document_start");
  for (const ParameterSpec& p : list_parameters(c_)) add_parameter(p);
  for (std::size_t i = 0; i < layers_.blocks.size(); ++i) {
    const LayerBlock& block = layers_.blocks[i];
    scope_ = {0, 0, block.layer, block.kind, Phase::forward};
    const ValueId x =
        block.kind == SubBlock::embedding ? ValueId() : stream(layers_.reads(static_cast<int>(i)));
    if (block.kind == SubBlock::head)
      lower_head(x);
    else
      contributions_.push_back(lower_block(block.kind, x));
    if (options_.contributions && block.kind != SubBlock::head)
      graph_.add_output(fmt::format("contribution.{}", i), contributions_.back());
    add_stream_output(i);
  }
  if (balance_loss_) graph_.add_output("balance_loss", balance_loss_);
  return std::move(graph_);
}

void Lowering::add_stream_output(std::size_t block) {
  const int layer = layers_.blocks[block].layer;
  const auto& wanted = options_.streams;
  if (options_.head != HeadOutput::hidden || layer < 0 || layers_.blocks[block + 1].layer == layer ||
      std::find(wanted.begin(), wanted.end(), layer) == wanted.end())
    return;
  std::vector<int> all(contributions_.size());
  std::iota(all.begin(), all.end(), 0);
  graph_.add_output(fmt::format("stream.{}", layer), stream(all));
}

Graph Lowering::run_alone(const LayerBlock& block) {
  alone_ = true;
  scope_ = {0, 0, block.layer, block.kind, Phase::forward};
  for (const ParameterSpec& p : list_parameters(c_))
    if (p.layer == block.layer) add_parameter(p);
  ValueId x;
  if (block.kind == SubBlock::embedding)
    token_ids_ = token_input("tokens");
  else
    x = graph_.add_external(ExternalKind::input, "stream",
                            {options_.dtype, Shape{tokens_, c_.hidden_size}, {}});
  if (block.kind == SubBlock::head) {
    targets_ = token_input("targets");
    lower_head(x);
  } else {
    graph_.add_output("out", lower_block(block.kind, x));
  }
  return std::move(graph_);
}

ValueId Lowering::token_input(std::string_view name) {
  return graph_.add_external(ExternalKind::input, std::string(name), {DType::i32, Shape{tokens_}, {}});
}

void Lowering::add_parameter(const ParameterSpec& p) {
  const DType dtype = p.has_compute_copy() ? options_.dtype : wide(options_.dtype);
  parameters_[p.name] = graph_.add_external(ExternalKind::parameter, read_name(p, options_.dtype),
                                            {dtype, local_shape(p, tensor_axis(options_.mesh)), {}});
}

void Lowering::show(const char* name, ValueId value) {
  if (alone_) graph_.add_output(name, value);
}

void Lowering::add_cache_externals(const CacheShape& shape) {
  const auto input = [&](std::string_view name, Shape dims) {
    return graph_.add_external(ExternalKind::input, std::string(name), {DType::i32, std::move(dims), {}});
  };
  place_ = {.table = input(kBlockTable, {shape.sequences, shape.max_blocks}),
            .sequences = token_input(kSequences),
            .positions = token_input(kPositions)};
  cache_rows_ = token_input(kCacheRows);
  output_rows_ = input(kOutputRows, {shape.outputs});
  if (options_.head != HeadOutput::logits) targets_ = input("targets", {shape.outputs});
  if (shape.documents) document_start_ = token_input("document_start");
  for (const CacheSpec& spec : list_caches(c_, num_parts()))
    caches_[spec.name] =
        graph_.add_external(ExternalKind::state, spec.name,
                            {options_.dtype, {shape.num_blocks * shape.block_tokens, spec.width}, {}});
}

ValueId Lowering::parameter(std::string_view name) const {
  const auto it = parameters_.find(std::string(name));
  FARSKIP_CHECK(it != parameters_.end(), "no parameter {}", name);
  return it->second;
}
ValueId Lowering::linear(ValueId x, const LinearModule& module) {
  Builder b = builder();
  return add_bias(ops::linear(b, x, layer_parameter(module.weight())), module);
}
ValueId Lowering::linear_of_parts(ValueId x, const LinearModule& module) {
  Builder b = builder();
  return add_bias(sum_of_parts(ops::linear(b, x, layer_parameter(module.weight()))), module);
}
ValueId Lowering::add_bias(ValueId y, const LinearModule& module) {
  if (!module.has_bias) return y;
  Builder b = builder();
  return ops::add_bias(b, y, layer_parameter(module.bias()));
}

std::vector<ValueId> Lowering::for_parts(std::vector<ValueId> whole) {
  if (num_parts() == 1) return whole;
  Builder b = builder();
  return ops::fan_out(b, std::move(whole), over_parts());
}
ValueId Lowering::for_parts(ValueId whole) {
  ValueId& part = for_parts_[whole];
  if (!part) part = for_parts(std::vector{whole})[0];
  return part;
}
ValueId Lowering::sum_of_parts(ValueId part) {
  if (num_parts() == 1) return part;
  Builder b = builder();
  return ops::all_reduce(b, {part}, over_parts())[0];
}

ValueId Lowering::stream(const std::vector<int>& list) {
  if (list.size() == 1) return contributions_[static_cast<std::size_t>(list[0])];
  if (const auto it = sums_.find(list); it != sums_.end()) return it->second;
  const std::vector<int> prefix(list.begin(), list.end() - 1);
  Builder b = builder();
  const ValueId sum = ops::add(b, stream(prefix), contributions_[static_cast<std::size_t>(list.back())]);
  sums_[list] = sum;
  return sum;
}

ValueId Lowering::normalised(ValueId x, ValueId weight) {
  ValueId& y = norms_[{x, weight}];
  if (!y) y = normalised(x, weight, c_.rms_norm_eps);
  return y;
}
ValueId Lowering::normalised(ValueId x, ValueId weight, double eps) {
  Builder b = builder();
  return ops::rms_norm(b, x, weight, eps);
}

ValueId Lowering::lower_block(SubBlock kind, ValueId x) {
  if (kind == SubBlock::embedding) {
    Builder b = builder();
    return sum_of_parts(
        ops::embedding(b, parameter(kEmbeddingName), token_ids_, vocabulary_part(kEmbeddingName)));
  }
  return make_block(c_, kind)->lower(*this, normalised(x, layer_parameter(norm_suffix(kind))));
}

void Lowering::add_layer_output(std::string_view name, ValueId value) {
  graph_.add_output(fmt::format("{}.{}", name, scope_.layer), value);
}

void Lowering::add_balance_loss(const ops::RouteResult& routed, bool normalize) {
  if (!options_.balance_loss) return;
  Builder b = builder();
  const ValueId loss =
      ops::balance_loss(b, routed.scores, routed.indices, {options_.sequence_length, normalize});
  balance_loss_ = balance_loss_ ? ops::add(b, balance_loss_, loss) : loss;
}

void Lowering::lower_head(ValueId x) {
  Builder b = builder();
  if (options_.cache) x = ops::embedding(b, x, output_rows_);
  const ValueId h = normalised(x, parameter(kFinalNormName));
  if (options_.head == HeadOutput::hidden) {
    graph_.add_output("hidden", h);
    return;
  }
  const ValueId weight = parameter(head_name(c_));
  if (options_.head == HeadOutput::logits) {
    graph_.add_output("logits", whole_logits(ops::matmul(b, h, weight, {.transpose_b = true, .wide = true})));
    return;
  }
  if (num_parts() > 1) return lower_cut_losses(h, weight);
  if (options_.head == HeadOutput::token_losses) {
    graph_.add_output("token_losses", ops::token_losses(b, h, weight, targets_));
    return;
  }
  add_loss_outputs(ops::linear_cross_entropy(b, h, weight, targets_));
}

void Lowering::add_loss_outputs(const ops::LossResult& loss) {
  graph_.add_output("loss_sum", loss.loss_sum);
  graph_.add_output("num_correct", loss.num_correct);
}

ops::VocabularyPart Lowering::vocabulary_part(std::string_view name) const {
  if (num_parts() == 1) return {};
  return {graph_.type(parameter(name)).shape[0] * options_.mesh.rank(MeshAxis::tensor), c_.vocab_size};
}

std::vector<ValueId> Lowering::below_each_other(std::vector<ValueId> parts) {
  Builder b = builder();
  ops::Replicas attributes = over_parts();
  for (const ValueId part : parts)
    attributes.add(cut_evenly(MeshAxis::tensor, num_parts() * b.shape(part)[0], num_parts()));
  return ops::all_gather(b, std::move(parts), attributes);
}

ValueId Lowering::whole_logits(ValueId logits) {
  if (num_parts() == 1) return logits;
  Builder b = builder();
  return ops::side_by_side(b, below_each_other({logits})[0],
                           {.parts = num_parts(), .columns = c_.vocab_size});
}

void Lowering::lower_cut_losses(ValueId h, ValueId weight) {
  Builder b = builder();
  const ops::JointParts parts{b.shape(weight)[0]};
  const ops::HeadStats own =
      ops::head_stats(b, for_parts(h), weight, targets_, vocabulary_part(head_name(c_)));
  const std::vector<ValueId> gathered = below_each_other({own.sums, own.fixed});
  const ops::HeadStats all{gathered[0], gathered[1]};
  if (options_.head == HeadOutput::token_losses)
    graph_.add_output("token_losses", ops::joint_token_losses(b, all, targets_, parts));
  else
    add_loss_outputs(ops::joint_cross_entropy(b, all, targets_, parts));
}

Graph lower(const ModelConfig& config, const LayerGraph& layers, const LowerOptions& options) {
  return Lowering(config, layers, options).run();
}

Graph lower_block(const ModelConfig& config, const LayerBlock& block, const LowerOptions& options) {
  return Lowering(config, {}, options).run_alone(block);
}

std::string_view norm_suffix(SubBlock kind) {
  return kind == SubBlock::attention ? "input_layernorm.weight" : "post_attention_layernorm.weight";
}

ops::Route routing(const MoeConfig& moe) {
  return {.top_k = moe.top_k,
          .score = moe.score,
          .num_groups = moe.num_groups,
          .top_groups = moe.top_groups,
          .group_score = moe.group_score,
          .normalize = moe.normalize,
          .scaling = moe.scaling,
          .by_logits = moe.by_logits};
}

}  // namespace farskip
