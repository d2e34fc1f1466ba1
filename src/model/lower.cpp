// SPDX-License-Identifier: Apache-2.0
#include "farskip/model/lower.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <unordered_map>

namespace farskip {
namespace {

class Lowering {
 public:
  Lowering(const ModelConfig& config, const LayerGraph& layers, const LowerOptions& options)
      : c_(config), layers_(layers), options_(options), tokens_(options.batch * options.sequence_length) {}

  Graph run() {
    token_ids_ = token_input("tokens");
    if (!options_.logits) targets_ = token_input("targets");
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
      add_stream_output(i);
    }
    if (balance_loss_) graph_.add_output("balance_loss", balance_loss_);
    return std::move(graph_);
  }

  Graph run_alone(const LayerBlock& block) {
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

 private:
  Builder builder() { return {graph_, scope_}; }

  /// After the last block of a layer that was asked for: the sum of everything so far.
  void add_stream_output(std::size_t block) {
    const int layer = layers_.blocks[block].layer;
    const auto& wanted = options_.streams;
    if (!options_.hidden || layer < 0 || layers_.blocks[block + 1].layer == layer ||
        std::find(wanted.begin(), wanted.end(), layer) == wanted.end())
      return;
    std::vector<int> all(contributions_.size());
    std::iota(all.begin(), all.end(), 0);
    graph_.add_output(fmt::format("stream.{}", layer), stream(all));
  }

  ValueId token_input(const char* name) {
    return graph_.add_external(ExternalKind::input, name, {DType::i32, Shape{tokens_}, {}});
  }

  void add_parameter(const ParameterSpec& p) {
    const DType dtype = p.has_compute_copy() ? options_.dtype : wide(options_.dtype);
    parameters_[p.name] =
        graph_.add_external(ExternalKind::parameter, read_name(p, options_.dtype), {dtype, p.shape, {}});
  }

  /// An output of a block that is lowered alone.
  void show(const char* name, ValueId value) {
    if (alone_) graph_.add_output(name, value);
  }

  ValueId parameter(std::string_view name) const {
    const auto it = parameters_.find(std::string(name));
    FARSKIP_CHECK(it != parameters_.end(), "no parameter {}", name);
    return it->second;
  }
  ValueId layer_parameter(std::string_view suffix) const {
    return parameter(layer_name(scope_.layer, suffix));
  }

  /// A projection of attention, with its bias where the model has one.
  ValueId project(ValueId x, std::string_view part) {
    Builder b = builder();
    const std::string module = fmt::format("self_attn.{}", part);
    const ValueId y = ops::linear(b, x, layer_parameter(module + ".weight"));
    const auto bias = parameters_.find(layer_name(scope_.layer, module + ".bias"));
    return bias == parameters_.end() ? y : ops::add_bias(b, y, bias->second);
  }

  // Sum of contributions in order. Lists that share a beginning share its sums.
  ValueId stream(const std::vector<int>& list) {
    if (list.size() == 1) return contributions_[static_cast<std::size_t>(list[0])];
    if (const auto it = sums_.find(list); it != sums_.end()) return it->second;
    const std::vector<int> prefix(list.begin(), list.end() - 1);
    Builder b = builder();
    const ValueId sum = ops::add(b, stream(prefix), contributions_[static_cast<std::size_t>(list.back())]);
    sums_[list] = sum;
    return sum;
  }

  // Shared and routed experts read the same norm of the same stream: one op.
  ValueId normalised(ValueId x, ValueId weight) {
    ValueId& y = norms_[{x, weight}];
    if (!y) y = normalised(x, weight, c_.rms_norm_eps);
    return y;
  }
  ValueId normalised(ValueId x, ValueId weight, double eps) {
    Builder b = builder();
    return ops::rms_norm(b, x, weight, eps);
  }

  /// `x`: the stream that it reads.
  ValueId lower_block(SubBlock kind, ValueId x) {
    if (kind == SubBlock::embedding) {
      Builder b = builder();
      return ops::embedding(b, parameter(kEmbeddingName), token_ids_);
    }
    const ValueId h = normalised(x, layer_parameter(norm_suffix(kind)));
    switch (kind) {
      case SubBlock::attention:
        return c_.mla ? latent_attention(h, *c_.mla) : grouped_query_attention(h);
      case SubBlock::dense:
        return mlp(h, "mlp");
      case SubBlock::shared:
        return mlp(h, "mlp.shared_experts");
      case SubBlock::routed:
        return routed_experts(h);
      default:
        throw InternalError(fmt::format("{} has no lowering", scope_.text()));
    }
  }

  ValueId mlp(ValueId h, const std::string& module) {
    Builder b = builder();
    const ValueId gate_up = ops::linear(b, h, layer_parameter(module + ".gate_up_proj.weight"));
    const ValueId inner = ops::swiglu(b, gate_up);
    show("inner", inner);
    return ops::linear(b, inner, layer_parameter(module + ".down_proj.weight"));
  }

  ValueId rope_table() {
    if (rope_table_) return rope_table_;
    const RopeConfig& r = c_.rope;
    Builder b = builder();
    rope_table_ = ops::rope_table(b, {.positions = options_.sequence_length,
                                      .dim = c_.rope_dim(),
                                      .theta = r.theta,
                                      .scaling = r.scaling,
                                      .factor = r.factor,
                                      .original_positions = r.original_positions,
                                      .beta_fast = r.beta_fast,
                                      .beta_slow = r.beta_slow,
                                      .attention_factor = r.attention_factor});
    return rope_table_;
  }

  ValueId rotate(ValueId x, std::int64_t head_dim, std::int64_t offset) {
    Builder b = builder();
    const ValueId table = rope_table();
    return ops::rope(
        b, x, table,
        {.head_dim = head_dim, .offset = offset, .dim = c_.rope_dim(), .interleaved = c_.rope.interleaved});
  }

  /// `h` is what the layer's projections read.
  ValueId core_attention(ValueId h, ValueId q, ValueId k, ValueId v, std::int64_t kv_heads) {
    Builder b = builder();
    const ops::Attention attributes{.sequence_length = options_.sequence_length,
                                    .heads = c_.num_heads,
                                    .kv_heads = kv_heads,
                                    .scale = c_.softmax_scale,
                                    .chunk = c_.long_text.is_rotated(scope_.layer) ? c_.long_text.chunk : 0,
                                    .deterministic = options_.deterministic};
    ValueId out = ops::attention(b, q, k, v, document_start_, attributes).out;
    if (c_.gated_attention) out = ops::sigmoid_gate(b, out, project(h, "gate_proj"));
    show("inner", out);
    return project(out, "o_proj");
  }

  ValueId latent_attention(ValueId h, const MlaConfig& mla) {
    Builder b = builder();
    ValueId q;
    if (mla.q_lora_rank > 0) {
      const ValueId latent = project(h, "q_a_proj");
      const ValueId weight = layer_parameter("self_attn.q_a_layernorm.weight");
      q = project(normalised(latent, weight, MlaConfig::kNormEps), "q_b_proj");
    } else {
      q = project(h, "q_proj");
    }
    q = rotate(q, mla.nope_dim + mla.rope_dim, mla.nope_dim);
    const ValueId kv_a = project(h, "kv_a_proj_with_mqa");
    const auto parts = ops::split_columns(b, kv_a, {mla.kv_lora_rank, mla.rope_dim});
    const ValueId latent =
        normalised(parts[0], layer_parameter("self_attn.kv_a_layernorm.weight"), MlaConfig::kNormEps);
    const ValueId kv = project(latent, "kv_b_proj");
    const auto [k, v] = ops::mla_key_value(b, kv, rotate(parts[1], mla.rope_dim, 0),
                                           {c_.num_heads, mla.nope_dim, mla.rope_dim, mla.v_dim});
    return core_attention(h, q, k, v, c_.num_heads);
  }

  ValueId grouped_query_attention(ValueId h) {
    Builder b = builder();
    ValueId q = project(h, "q_proj");
    ValueId k = project(h, "k_proj");
    ValueId v = project(h, "v_proj");
    if (c_.gqa.qk_norm == QkNorm::head || c_.gqa.qk_norm == QkNorm::projection) {
      q = normalised(q, layer_parameter("self_attn.q_norm.weight"));
      k = normalised(k, layer_parameter("self_attn.k_norm.weight"));
    }
    if (c_.gqa.clip > 0)
      for (ValueId* x : {&q, &k, &v}) *x = ops::clamp(b, *x, c_.gqa.clip);
    if (c_.long_text.is_rotated(scope_.layer)) {
      for (ValueId* x : {&q, &k}) {
        *x = rotate(*x, c_.gqa.head_dim, 0);
        if (c_.gqa.qk_norm == QkNorm::rotated)
          *x = normalised(*x, ops::ones(b, c_.gqa.head_dim), c_.rms_norm_eps);
      }
    } else if (c_.long_text.temperature_scale > 0) {
      q = ops::scale_rows(b, q, attention_temperature());
    }
    return core_attention(h, q, k, v, c_.gqa.kv_heads);
  }

  ValueId attention_temperature() {
    if (!temperature_) {
      Builder b = builder();
      temperature_ = ops::attention_temperature(b, {.tokens = tokens_,
                                                    .sequence_length = options_.sequence_length,
                                                    .floor = c_.long_text.temperature_floor,
                                                    .scale = c_.long_text.temperature_scale});
    }
    return temperature_;
  }

  ValueId routed_experts(ValueId h) {
    Builder b = builder();
    const MoeConfig& moe = c_.moe;
    const ValueId logits =
        ops::linear(b, ops::cast(b, h, wide(options_.dtype)), layer_parameter("mlp.gate.weight"));
    const ValueId bias = moe.selection_bias ? layer_parameter("mlp.gate.e_score_correction_bias") : ValueId();
    const ops::RouteResult routed = ops::route(b, logits, bias, routing(moe));
    add_balance_loss(b, routed);
    if (options_.hidden) {
      graph_.add_output(fmt::format("router_logits.{}", scope_.layer), logits);
      graph_.add_output(fmt::format("router_choice.{}", scope_.layer), routed.indices);
    }
    const ops::RoutedOrder order = ops::sort_by_expert(b, routed.indices, moe.num_experts);
    graph_.add_output(fmt::format("expert_offsets.{}", scope_.layer), order.offsets);
    // A weight of what experts give multiplies inside the expert, before its down-projection, so that its
    // gradient needs no saved [R, H] tensor.
    ValueId weight = ops::permute_values(b, routed.weights, order.row_slot, order.slot_row);
    ValueId rows = ops::dispatch_rows(b, h, order, moe.top_k);
    if (moe.scales_input) {
      rows = ops::scale_rows(b, rows, weight);
      weight = {};
    }
    const ValueId gate_up =
        ops::grouped_matmul(b, rows, layer_parameter("mlp.experts.gate_up_proj"), order.offsets);
    const ValueId inner = ops::swiglu(b, gate_up, weight);
    show("inner", inner);
    show("router_logits", logits);
    const ValueId out =
        ops::grouped_matmul(b, inner, layer_parameter("mlp.experts.down_proj"), order.offsets);
    return ops::combine_rows(b, out, order, moe.top_k);
  }

  void add_balance_loss(Builder& b, const ops::RouteResult& routed) {
    if (!options_.balance_loss) return;
    const bool normalize = c_.moe.score == ops::ScoreFunction::sigmoid;
    const ValueId loss =
        ops::balance_loss(b, routed.scores, routed.indices, {options_.sequence_length, normalize});
    balance_loss_ = balance_loss_ ? ops::add(b, balance_loss_, loss) : loss;
  }

  void lower_head(ValueId x) {
    const ValueId h = normalised(x, parameter(kFinalNormName));
    if (options_.hidden) {
      graph_.add_output("hidden", h);
      return;
    }
    const ValueId weight = parameter(head_name(c_));
    Builder b = builder();
    if (options_.logits) {
      graph_.add_output("logits", ops::matmul(b, h, weight, {.transpose_b = true, .wide = true}));
      return;
    }
    const ops::LossResult loss = ops::linear_cross_entropy(b, h, weight, targets_);
    graph_.add_output("loss_sum", loss.loss_sum);
    graph_.add_output("num_correct", loss.num_correct);
  }

  const ModelConfig& c_;
  const LayerGraph& layers_;
  const LowerOptions& options_;
  const std::int64_t tokens_;
  Graph graph_;
  bool alone_ = false;
  Scope scope_;
  ValueId token_ids_, targets_, document_start_, rope_table_, temperature_, balance_loss_;
  std::unordered_map<std::string, ValueId> parameters_;
  std::vector<ValueId> contributions_;
  std::map<std::vector<int>, ValueId> sums_;
  std::map<std::pair<ValueId, ValueId>, ValueId> norms_;
};

}  // namespace

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
