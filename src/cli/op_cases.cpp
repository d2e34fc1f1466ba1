// SPDX-License-Identifier: Apache-2.0
#include "cli/op_cases.h"

#include <cmath>
#include <numeric>

#include "farskip/base/random.h"
#include "ops/inference_ops.h"

namespace farskip {
namespace {

using Integers = std::vector<std::vector<std::int32_t>>;

/// Every token goes to top_k experts, in order: the routed rows of one token lie apart.
struct Routing {
  std::vector<std::int32_t> row_slot, slot_row;
};
Routing route_evenly(std::int64_t rows) {
  constexpr std::int64_t kStride = 7919;  // a prime: rows of one expert come from tokens all over
  Routing routing;
  routing.row_slot.resize(static_cast<std::size_t>(rows));
  routing.slot_row.resize(static_cast<std::size_t>(rows));
  const std::int64_t step = std::gcd(kStride, rows) == 1 ? kStride : 1;
  for (std::int64_t row = 0; row < rows; ++row) {
    const auto slot = static_cast<std::size_t>(row * step % rows);
    routing.row_slot[static_cast<std::size_t>(row)] = static_cast<std::int32_t>(slot);
    routing.slot_row[slot] = static_cast<std::int32_t>(row);
  }
  return routing;
}

std::vector<std::int32_t> random_tokens(std::int64_t count, std::int64_t below) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < tokens.size(); ++i)
    tokens[i] = static_cast<std::int32_t>(uniform_u64(1, 0, i) % static_cast<std::uint64_t>(below));
  return tokens;
}

class Cases {
 public:
  Cases(const ModelConfig& model, std::int64_t tokens, std::int64_t sequence_length, DType low)
      : model_(model), tokens_(tokens), length_(sequence_length), low_(low), hidden_(model.hidden_size) {}

  std::vector<OpCase> make() {
    add_dense();
    add_attention();
    if (model_.moe.num_experts > 0) {
      add_experts(false);
      add_experts(true);
      add_dispatch();
    }
    add_elementwise();
    add_head();
    add_cached_attention();
    add_sampling();
    return std::move(cases_);
  }

 private:
  TensorType low(Shape shape) const { return {low_, std::move(shape), {}}; }
  static TensorType f32(Shape shape) { return {DType::f32, std::move(shape), {}}; }
  static TensorType i32(std::int64_t n) { return {DType::i32, Shape{n}, {}}; }
  static Ceiling product(std::int64_t m, std::int64_t n, std::int64_t k) {
    return {Ceiling::Kind::product, m, n, k};
  }
  static constexpr Ceiling kSquare{Ceiling::Kind::product, 0, 0, 0}, kCopy{Ceiling::Kind::copy, 0, 0, 0};

  template <class A = NoAttributes>
  void add(std::string name, std::string op, std::vector<TensorType> inputs, Ceiling ceiling,
           A attributes = {}, Integers integers = {}) {
    cases_.push_back({std::move(name), std::move(op), Attributes::of(attributes), std::move(inputs),
                      std::move(integers), ceiling});
  }

  void add_dense() {
    const std::int64_t in = model_.num_heads * model_.v_head_dim(), out = hidden_;
    add("projection", "matmul", {low({tokens_, in}), low({out, in})}, product(tokens_, out, in),
        ops::Matmul{.transpose_b = true});
    add("projection, input gradient", "matmul", {low({tokens_, out}), low({out, in})},
        product(tokens_, in, out), ops::Matmul{});
    add("projection, weight gradient", "matmul", {low({tokens_, out}), low({tokens_, in}), f32({out, in})},
        product(tokens_, out, in), ops::Matmul{.transpose_a = true, .wide = true});
  }

  void add_attention() {
    const std::int64_t heads = model_.num_heads, kv = model_.mla ? heads : model_.gqa.kv_heads;
    const std::int64_t d = model_.qk_head_dim(), dv = model_.v_head_dim();
    const ops::Attention attributes{.sequence_length = length_,
                                    .heads = heads,
                                    .kv_heads = kv,
                                    .scale = 1.0 / std::sqrt(static_cast<double>(d)),
                                    .chunk = 0};
    const TensorType q = low({tokens_, heads * d}), k = low({tokens_, kv * d}), v = low({tokens_, kv * dv});
    const TensorType out = low({tokens_, heads * dv});
    add("attention", "attention", {q, k, v}, kSquare, attributes);
    add("attention, gradient", "attention_grad", {out, q, k, v, out, f32({tokens_, heads})}, kSquare,
        attributes);
  }

  void add_experts(bool skewed) {
    const std::int64_t experts = model_.moe.num_experts, rows = tokens_ * model_.moe.top_k;
    const Integers offsets{spread_rows(rows, experts, skewed)};
    const auto add_weight = [&](const std::string& part, std::int64_t n, std::int64_t k) {
      const std::string name = "experts " + part + (skewed ? ", skewed" : ", balanced");
      const TensorType w = low({experts, n, k}), x = low({rows, k}), y = low({rows, n});
      add(name, "grouped_matmul", {x, w, i32(experts + 1)}, product(rows, n, k), ops::GroupedMatmul{true},
          offsets);
      add(name + ", input gradient", "grouped_matmul", {y, w, i32(experts + 1)}, product(rows, k, n),
          ops::GroupedMatmul{false}, offsets);
      add(name + ", weight gradient", "grouped_matmul_wgrad", {y, x, i32(experts + 1)}, product(rows, n, k),
          NoAttributes{}, offsets);
    };
    add_weight("up", 2 * model_.moe.expert_size, hidden_);
    add_weight("down", hidden_, model_.moe.expert_size);
  }

  void add_dispatch() {
    const std::int64_t rows = tokens_ * model_.moe.top_k;
    const Routing routing = route_evenly(rows);
    const Integers order{routing.row_slot, routing.slot_row};
    const auto add_order = [&](const char* op, std::int64_t in) {
      add(op, op, {low({in, hidden_}), i32(rows), i32(rows)}, kCopy, ops::TopK{model_.moe.top_k}, order);
    };
    add_order("dispatch_rows", tokens_);
    add_order("combine_rows", rows);
    const std::int64_t width = model_.moe.expert_size;
    add("swiglu of routed rows", "swiglu", {low({rows, 2 * width}), f32({rows})}, kCopy);
    add("swiglu of routed rows, gradient", "swiglu_grad",
        {low({rows, width}), low({rows, 2 * width}), f32({rows})}, kCopy);
  }

  void add_elementwise() {
    const TensorType x = low({tokens_, hidden_}), w = f32({hidden_});
    add("rms_norm", "rms_norm", {x, w}, kCopy, ops::RmsNorm{1e-6});
    add("rms_norm, gradient", "rms_norm_grad", {x, x, w, f32({tokens_, 1})}, kCopy, ops::RmsNorm{1e-6});
    add("add", "add", {x, x}, kCopy);
  }

  void add_head() {
    const TensorType h = low({tokens_, hidden_}), w = low({model_.vocab_size, hidden_});
    add("head and cross-entropy, with gradient", "linear_cross_entropy_grad", {f32({1}), h, w, i32(tokens_)},
        kSquare, NoAttributes{}, {random_tokens(tokens_, model_.vocab_size)});
  }

  /// The next token of each sequence of the micro-batch, which lies in a cache; blocks in a mixed order.
  void add_cached_attention() {
    const std::int64_t sequences = tokens_ / length_, block_tokens = 16;
    const std::int64_t blocks = (length_ + block_tokens - 1) / block_tokens,
                       rows = sequences * blocks * block_tokens;
    const std::int64_t heads = model_.num_heads, kv = model_.mla ? 1 : model_.gqa.kv_heads;
    const std::int64_t dv = model_.mla ? model_.mla->kv_lora_rank : model_.gqa.head_dim;
    const std::int64_t d = model_.mla ? dv + model_.mla->rope_dim : dv;
    std::vector<std::int32_t> of_sequence(static_cast<std::size_t>(sequences));
    std::iota(of_sequence.begin(), of_sequence.end(), 0);
    const std::vector<std::int32_t> positions(of_sequence.size(), static_cast<std::int32_t>(length_ - 1));
    std::vector<TensorType> inputs{low({sequences, heads * d}),
                                   low({rows, kv * d}),
                                   i32(sequences),
                                   i32(sequences),
                                   {DType::i32, Shape{sequences, blocks}, {}}};
    if (!model_.mla) inputs.push_back(low({rows, kv * dv}));
    add("cached attention, the next token", "cached_attention", inputs, kCopy,
        ops::CachedAttention{.heads = heads,
                             .kv_heads = kv,
                             .scale = 1.0 / std::sqrt(static_cast<double>(d)),
                             .block_tokens = block_tokens,
                             .value_size = dv},
        {of_sequence, positions, route_evenly(sequences * blocks).row_slot});
  }

  /// Of one text for each token of the micro-batch, up to 2,048.
  void add_sampling() {
    const std::int64_t rows = std::min<std::int64_t>(tokens_, 2048);
    const auto add_choice = [&](const char* name, float temperature, float top_p, std::int32_t top_k) {
      std::vector<float> real;
      std::vector<std::int32_t> whole;
      for (std::int32_t r = 0; r < rows; ++r) {
        real.insert(real.end(), {temperature, top_p, 0.0F, 1.0F});
        whole.insert(whole.end(), {top_k, 1, 0, r});
      }
      add(name, "sample", {f32({rows, model_.vocab_size}), f32({rows, 4}), {DType::i32, Shape{rows, 4}, {}}},
          kCopy, ops::Sample{}, {whole});
      cases_.back().numbers[1] = real;
    };
    add_choice("sample, the most likely", 0.0F, 1.0F, 0);
    add_choice("sample, by temperature", 0.8F, 1.0F, 0);
    add_choice("sample, top 50", 0.8F, 1.0F, 50);
    add_choice("sample, top 0.9", 0.8F, 0.9F, 0);
    add_choice("sample, top 50 and top 0.9", 0.8F, 0.9F, 50);
  }

  const ModelConfig& model_;
  std::int64_t tokens_, length_;
  DType low_;
  std::int64_t hidden_;
  std::vector<OpCase> cases_;
};

}  // namespace

std::vector<std::int32_t> spread_rows(std::int64_t rows, std::int64_t experts, bool skewed) {
  double total = 0;
  for (std::int64_t e = 0; e < experts; ++e) total += skewed ? 1.0 / static_cast<double>(e + 1) : 1.0;
  std::vector<std::int32_t> offsets{0};
  double sum = 0;
  for (std::int64_t e = 0; e < experts; ++e) {
    sum += skewed ? 1.0 / static_cast<double>(e + 1) : 1.0;
    offsets.push_back(static_cast<std::int32_t>(std::llround(static_cast<double>(rows) * sum / total)));
  }
  return offsets;
}

std::vector<OpCase> op_cases(const ModelConfig& model, std::int64_t tokens, std::int64_t sequence_length,
                             DType low) {
  return Cases(model, tokens, sequence_length, low).make();
}

}  // namespace farskip
