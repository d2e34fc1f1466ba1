// SPDX-License-Identifier: Apache-2.0
// Multi-head latent attention: all heads' keys and values come from one latent vector a token (DeepSeek-V2,
// arXiv 2405.04434).

#include "model/blocks/attention_output.h"
#include "model/blocks/block.h"

namespace farskip {
namespace {

class LatentAttention : public Block {
 public:
  explicit LatentAttention(const ModelConfig& config);
  void list(ParameterList& list) const override;
  ValueId lower(Lowering& to, ValueId h) const override;
  std::vector<std::string> readers() const override {
    std::vector<std::string> readers{(has_query_latent() ? q_a_ : q_).weight(), kv_a_.weight()};
    out_.add_readers(readers);
    return readers;
  }
  std::string writer() const override { return out_.writer(); }

 private:
  bool has_query_latent() const { return mla_.q_lora_rank > 0; }
  ops::MlaKeyValue parts(const Lowering& to) const {
    return {to.own_heads(), mla_.nope_dim, mla_.rope_dim, mla_.v_dim};
  }
  /// Over the latents themselves: neither keys nor values are formed.
  ValueId attend_absorbed(Lowering& to, ValueId q, ValueId latents) const;

  const MlaConfig& mla_;
  LinearModule q_a_, q_;  // q_: from the latent, where there is one
  NormModule q_norm_;
  LinearModule kv_a_, kv_b_;
  NormModule kv_norm_;
  AttentionOutput out_;
};

LatentAttention::LatentAttention(const ModelConfig& c) : mla_(*c.mla), out_(c, c.num_heads * c.mla->v_dim) {
  const std::int64_t heads = c.num_heads, hidden = c.hidden_size;
  const Layout by_head{{.dim = 0, .heads = heads}};
  const std::int64_t queries = heads * (mla_.nope_dim + mla_.rope_dim);
  if (has_query_latent()) {
    q_a_ = {"self_attn.q_a_proj", mla_.q_lora_rank, hidden, c.attention_bias};
    q_norm_ = {"self_attn.q_a_layernorm", mla_.q_lora_rank};
    q_ = {"self_attn.q_b_proj", queries, mla_.q_lora_rank, false, by_head};
  } else {
    q_ = {"self_attn.q_proj", queries, hidden, false, by_head};
  }
  kv_a_ = {"self_attn.kv_a_proj_with_mqa", mla_.kv_lora_rank + mla_.rope_dim, hidden, c.attention_bias};
  kv_norm_ = {"self_attn.kv_a_layernorm", mla_.kv_lora_rank};
  kv_b_ = {"self_attn.kv_b_proj", heads * (mla_.nope_dim + mla_.v_dim), mla_.kv_lora_rank, false, by_head};
}

void LatentAttention::list(ParameterList& list) const {
  if (has_query_latent()) {
    list.add(q_a_);
    list.add(q_norm_);
  }
  list.add(q_);
  list.add(kv_a_);
  list.add(kv_norm_);
  list.add(kv_b_);
  out_.list(list);
}

ValueId LatentAttention::lower(Lowering& to, ValueId h) const {
  Builder b = to.builder();
  const auto normalised = [&](ValueId x, const NormModule& norm) {
    return to.normalised(x, to.layer_parameter(norm.weight()), MlaConfig::kNormEps);
  };
  ValueId q;
  std::vector<ValueId> shared;  // what all heads share
  if (has_query_latent())
    shared.push_back(normalised(to.linear(h, q_a_), q_norm_));
  else
    q = to.linear(to.for_parts(h), q_);
  const ValueId kv_a = to.linear(h, kv_a_);
  const auto columns = ops::split_columns(b, kv_a, {mla_.kv_lora_rank, mla_.rope_dim});
  shared.push_back(normalised(columns[0], kv_norm_));
  shared.push_back(to.rotate(columns[1], mla_.rope_dim, 0));
  shared = to.for_parts(std::move(shared));
  if (!q) q = to.linear(shared[0], q_);
  const ValueId latent = shared[shared.size() - 2], rotated = shared.back();
  q = to.rotate(q, mla_.nope_dim + mla_.rope_dim, mla_.nope_dim);
  if (to.has_cache()) {
    const ValueId latents = to.cached(CacheKind::latents, latent, rotated);
    if (to.reads_cache()) return out_.lower(to, h, attend_absorbed(to, q, latents));
  }
  const auto [k, v] = ops::mla_key_value(b, to.linear(latent, kv_b_), rotated, parts(to));
  return out_.lower(to, h, to.attend(q, k, v, to.own_heads()));
}

ValueId LatentAttention::attend_absorbed(Lowering& to, ValueId q, ValueId latents) const {
  Builder b = to.builder();
  const ValueId weight = to.layer_parameter(kv_b_.weight());
  const ValueId absorbed = ops::absorb_query(b, q, weight, parts(to));
  return ops::expand_value(b, to.attend_cached(absorbed, latents, {}, 1, mla_.kv_lora_rank), weight,
                           parts(to));
}

}  // namespace

std::unique_ptr<Block> make_latent_attention(const ModelConfig& config) {
  return std::make_unique<LatentAttention>(config);
}

}  // namespace farskip
