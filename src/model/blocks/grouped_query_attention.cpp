// SPDX-License-Identifier: Apache-2.0
// Attention whose heads share keys and values in groups.

#include "model/blocks/attention_output.h"
#include "model/blocks/block.h"

namespace farskip {
namespace {

class GroupedQueryAttention : public Block {
 public:
  explicit GroupedQueryAttention(const ModelConfig& config);
  void list(ParameterList& list) const override;
  ValueId lower(Lowering& to, ValueId h) const override;
  std::vector<std::string> readers() const override {
    std::vector<std::string> readers{q_.weight(), k_.weight(), v_.weight()};
    out_.add_readers(readers);
    return readers;
  }
  std::string writer() const override { return out_.writer(); }

 private:
  /// A norm over all heads needs them on one rank.
  bool norms_all_heads() const { return gqa_.qk_norm == QkNorm::projection; }
  bool has_norms() const { return gqa_.qk_norm == QkNorm::head || norms_all_heads(); }

  const ModelConfig& c_;
  const GqaConfig& gqa_;
  LinearModule q_, k_, v_;
  NormModule q_norm_, k_norm_;
  AttentionOutput out_;
};

GroupedQueryAttention::GroupedQueryAttention(const ModelConfig& c)
    : c_(c), gqa_(c.gqa), out_(c, c.num_heads * c.gqa.head_dim) {
  const Layout by_head{{.dim = 0, .heads = c.num_heads}};
  const Layout by_kv_head{{.dim = 0, .heads = gqa_.kv_heads, .whole_if_few_heads = true}};
  const auto projection = [&](const char* name, std::int64_t heads, const Layout& layout) {
    return LinearModule{name, heads * gqa_.head_dim, c.hidden_size, c.attention_bias, layout};
  };
  q_ = projection("self_attn.q_proj", c.num_heads, norms_all_heads() ? Layout{} : by_head);
  k_ = projection("self_attn.k_proj", gqa_.kv_heads, norms_all_heads() ? Layout{} : by_kv_head);
  v_ = projection("self_attn.v_proj", gqa_.kv_heads, by_kv_head);
  q_norm_ = {"self_attn.q_norm", (norms_all_heads() ? c.num_heads : 1) * gqa_.head_dim};
  k_norm_ = {"self_attn.k_norm", (norms_all_heads() ? gqa_.kv_heads : 1) * gqa_.head_dim};
}

void GroupedQueryAttention::list(ParameterList& list) const {
  for (const LinearModule* projection : {&q_, &k_, &v_}) list.add(*projection);
  out_.list(list);
  if (!has_norms()) return;
  list.add(q_norm_);
  list.add(k_norm_);
}

ValueId GroupedQueryAttention::lower(Lowering& to, ValueId h) const {
  Builder b = to.builder();
  // Fewer heads than ranks are on several.
  const bool whole_q = norms_all_heads(), whole_v = gqa_.kv_heads < to.num_parts(),
             whole_k = whole_q || whole_v;
  ValueId q = to.linear(whole_q ? h : to.for_parts(h), q_);
  ValueId k = to.linear(whole_k ? h : to.for_parts(h), k_);
  ValueId v = to.linear(whole_v ? h : to.for_parts(h), v_);
  if (has_norms()) {
    const auto weight = [&](const NormModule& norm, bool whole) {
      const ValueId w = to.layer_parameter(norm.weight());
      return whole ? w : to.for_parts(w);
    };
    q = to.normalised(q, weight(q_norm_, whole_q));
    k = to.normalised(k, weight(k_norm_, whole_k));
  }
  if (whole_q) q = to.take_own_heads(q, c_.num_heads);
  if (whole_k) k = to.take_own_heads(k, gqa_.kv_heads);
  if (whole_v) v = to.take_own_heads(v, gqa_.kv_heads);
  if (gqa_.clip > 0)
    for (ValueId* x : {&q, &k, &v}) *x = ops::clamp(b, *x, gqa_.clip);
  if (c_.long_text.is_rotated(to.layer())) {
    for (ValueId* x : {&q, &k}) {
      *x = to.rotate(*x, gqa_.head_dim, 0);
      if (gqa_.qk_norm == QkNorm::rotated)
        *x = to.normalised(*x, ops::ones(b, gqa_.head_dim), c_.rms_norm_eps);
    }
  } else if (c_.long_text.temperature_scale > 0) {
    q = ops::scale_rows(b, q, to.attention_temperature());
  }
  const std::int64_t kv_heads = own_kv_heads(c_, to.num_parts());
  if (to.has_cache()) {
    const ValueId keys = to.cached(CacheKind::keys, k), values = to.cached(CacheKind::values, v);
    if (to.reads_cache())
      return out_.lower(to, h, to.attend_cached(q, keys, values, kv_heads, c_.v_head_dim()));
  }
  return out_.lower(to, h, to.attend(q, k, v, kv_heads));
}

}  // namespace

std::unique_ptr<Block> make_grouped_query_attention(const ModelConfig& config) {
  return std::make_unique<GroupedQueryAttention>(config);
}

}  // namespace farskip
