// SPDX-License-Identifier: Apache-2.0
// Shapes that the table of every op leaves out because the slow f64 reference could not bear them: many
// blocks, odd remainders, one token or expert that gets nearly everything, experts that get nothing.
#include <algorithm>
#include <cmath>
#include <numbers>
#include <random>

#include "farskip/ops/optimizer_ops.h"
#include "job.h"
#include "ops/collective_ops.h"

namespace farskip::test {
namespace {

const Attributes kNone = Attributes::of(NoAttributes{});

/// Every second entry is `often`.
HostTensor skewed(const HostTensor& values, std::int32_t often) {
  HostTensor changed(DType::i32, values.shape());
  const auto from = values.values<std::int32_t>();
  const auto to = changed.values<std::int32_t>();
  for (std::size_t i = 0; i < to.size(); ++i) to[i] = i % 2 == 0 ? often : from[i];
  return changed;
}

/// Multiples of 1/256: equal or clearly apart, so that the choice does not hang on the last bit.
HostTensor clear_logits(const Shape& shape, std::uint64_t seed) {
  HostTensor logits = random_tensor(shape, seed);
  for (float& x : logits.values<float>()) x = std::round(x * 256.0F) / 256.0F;
  return logits;
}

void add_order(std::vector<OpCase>& cases, const char* name, const HostTensor& indices,
               std::int64_t num_experts, std::int64_t hidden) {
  const Order order = routed_order(indices, num_experts);
  const std::int64_t tokens = indices.shape()[0], top_k = indices.shape()[1];
  const auto k = Attributes::of(ops::TopK{top_k});
  cases.push_back({"sort_by_expert", name, Attributes::of(ops::SortByExpert{num_experts}), {indices}, {}});
  cases.push_back(
      {"dispatch_rows", name, k, {random_tensor({tokens, hidden}, 725), order.row_slot, order.slot_row}});
  cases.push_back({"permute_values",
                   name,
                   Attributes::of(ops::PermuteValues{}),
                   {random_tensor({tokens, top_k}, 727), order.row_slot, order.slot_row}});
}

OpCase grouped_case(const char* name, const std::vector<std::int32_t>& offsets, std::int64_t n,
                    std::int64_t k) {
  const auto experts = static_cast<std::int64_t>(offsets.size()) - 1;
  return {"grouped_matmul",
          name,
          Attributes::of(ops::GroupedMatmul{true}),
          {random_tensor({offsets.back(), k}, 741), random_tensor({experts, n, k}, 742),
           integer_tensor({experts + 1}, offsets)}};
}

OpCase attention_case(const char* name, std::int64_t sequences, std::int64_t heads, std::int64_t kv_heads,
                      std::int64_t length, std::int64_t qk, std::int64_t v) {
  const std::int64_t tokens = sequences * length;
  const ops::Attention a{.sequence_length = length,
                         .heads = heads,
                         .kv_heads = kv_heads,
                         .scale = 1.0 / std::sqrt(static_cast<double>(qk))};
  return {"attention",
          name,
          Attributes::of(a),
          {random_tensor({tokens, heads * qk}, 751), random_tensor({tokens, kv_heads * qk}, 752),
           random_tensor({tokens, kv_heads * v}, 753), HostTensor()}};
}

}  // namespace

std::vector<OpCase> large_dense_cases() {
  std::vector<OpCase> cases;
  const auto tokens = random_integers({16384}, 0, 30001, 701);
  const Attributes whole = Attributes::of(ops::VocabularyPart{});
  cases.push_back({"embedding", "16k tokens", whole, {random_tensor({30001, 64}, 702), tokens}});
  cases.push_back({"embedding",
                   "every second token is the same",
                   whole,
                   {random_tensor({30001, 36}, 703), skewed(tokens, 7)}});
  cases.push_back({"embedding",
                   "a vocabulary of three digits of the sort",
                   whole,
                   {random_tensor({300007, 8}, 704), random_integers({4099}, 0, 300007, 705)}});
  cases.push_back({"embedding",
                   "the last of two parts of a vocabulary, as many rows as a digit has values",
                   Attributes::of(ops::VocabularyPart{512, 1023}),
                   {random_tensor({512, 36}, 706), random_integers({16384}, 0, 1023, 707)}});
  cases.push_back(
      {"add", "many blocks", kNone, {random_tensor({1031, 4099}, 706), random_tensor({1031, 4099}, 707)}});
  cases.push_back(
      {"concat_columns",
       "wide",
       kNone,
       {random_tensor({3001, 512}, 708), random_tensor({3001, 64}, 709), random_tensor({3001, 37}, 710)}});
  cases.push_back({"split_rows",
                   "wide",
                   Attributes::of(ops::SplitRows{{2048, 1953}}),
                   {random_tensor({4001, 512}, 713)},
                   {0, 1},
                   {},
                   true});
  cases.push_back(
      {"concat_rows", "odd", kNone, {random_tensor({3001, 37}, 714), random_tensor({2999, 37}, 715)}});
  for (const bool transpose : {false, true})
    cases.push_back({"matmul",
                     "hundreds of tiles",
                     Attributes::of(ops::Matmul{.transpose_b = transpose}),
                     {random_tensor({1000, 1408}, 711),
                      random_tensor(transpose ? Shape{528, 1408} : Shape{1408, 528}, 712)}});
  std::vector<std::int32_t> even(65), uneven(65, 0);
  for (std::int32_t e = 0; e <= 64; ++e) even[static_cast<std::size_t>(e)] = 96 * e;
  for (std::int32_t e = 1; e <= 64; ++e)
    uneven[static_cast<std::size_t>(e)] = uneven[static_cast<std::size_t>(e - 1)] + (e % 3 == 0 ? 0
                                                                                     : e == 32  ? 4001
                                                                                                : e);
  cases.push_back(grouped_case("64 experts, balanced", even, 256, 192));
  cases.push_back(grouped_case("64 experts, every third empty, one with most rows", uneven, 176, 320));
  for (const char* op : {"linear_cross_entropy", "token_losses"})
    cases.push_back(
        {op,
         "a large vocabulary",
         kNone,
         {random_tensor({515, 256}, 713, 0.1), random_tensor({10240, 256}, 714),
          random_integers({515}, -1, 10240, 715)},
         op == std::string_view("token_losses") ? std::vector<std::size_t>{} : std::vector<std::size_t>{0}});
  cases.push_back({"head_stats",
                   "the last part of a large vocabulary",
                   Attributes::of(ops::VocabularyPart{10240, 20477}),
                   {random_tensor({515, 256}, 713, 0.1), random_tensor({10240, 256}, 714),
                    random_integers({515}, -1, 20477, 716)}});
  cases.push_back(attention_case("MLA's head sizes", 2, 4, 4, 512, 192, 128));
  cases.push_back(attention_case("grouped heads, odd length", 2, 6, 2, 333, 64, 64));
  return cases;
}

std::vector<OpCase> unrepeatable_attention_cases() {
  std::vector<OpCase> cases = attention_cases();
  cases.push_back(attention_case("MLA's head sizes", 2, 4, 4, 512, 192, 128));
  cases.push_back(attention_case("grouped heads, odd length", 2, 6, 2, 333, 64, 64));
  cases.push_back(attention_case("many blocks of keys", 1, 2, 2, 2048, 128, 128));
  std::erase_if(cases, [](const OpCase& c) { return c.op != "attention"; });
  for (OpCase& c : cases) {
    auto a = c.attributes.get<ops::Attention>();
    a.deterministic = false;
    c.attributes = Attributes::of(a);
  }
  return cases;
}

std::vector<OpCase> large_rowwise_cases() {
  std::vector<OpCase> cases;
  for (const auto& [rows, groups, size] : std::vector<std::array<std::int64_t, 3>>{{1037, 1, 2048},
                                                                                   {4099, 1, 512},
                                                                                   {301, 1, 4096},
                                                                                   {77, 1, 8192},
                                                                                   {37, 1, 10944},
                                                                                   {999, 16, 128},
                                                                                   {515, 3, 192},
                                                                                   {3001, 1, 257},
                                                                                   {2111, 1, 8}})
    cases.push_back({"rms_norm",
                     fmt::format("{} rows of {} groups", rows, groups),
                     Attributes::of(ops::RmsNorm{1e-6}),
                     {random_tensor({rows, groups * size}, 721), random_tensor({size}, 722, 0.5, 1.0)}});
  for (const bool interleaved : {false, true})
    for (const ops::Rope& a : {ops::Rope{.head_dim = 192, .offset = 128, .dim = 64},
                               ops::Rope{.head_dim = 128, .offset = 0, .dim = 128},
                               ops::Rope{.head_dim = 40, .offset = 8, .dim = 24}}) {
      ops::Rope rope = a;
      rope.interleaved = interleaved;
      cases.push_back({"rope",
                       "three sequences of many heads",
                       Attributes::of(rope),
                       {random_tensor({3 * 257, 16 * a.head_dim}, 723), random_tensor({257, a.dim}, 724)},
                       {0},
                       {1}});
    }
  cases.push_back({"rope_table",
                   "more pairs than one launch takes",
                   Attributes::of(ops::RopeTable{.positions = 1025, .dim = 600, .theta = 1e6}),
                   {},
                   {}});
  cases.push_back({"attention_temperature",
                   "many tokens",
                   Attributes::of(ops::AttentionTemperature{3 * 5003, 5003, 128, 0.1}),
                   {},
                   {}});
  cases.push_back(
      {"add_bias", "many rows", kNone, {random_tensor({5003, 2048}, 745), random_tensor({2048}, 746)}});
  cases.push_back(
      {"clamp", "a long one", Attributes::of(ops::Clamp{0.7}), {random_tensor({1001, 2048}, 740)}});
  cases.push_back(
      {"scale_rows", "wide rows", kNone, {random_tensor({5003, 5120}, 741), random_tensor({5003}, 742)}});
  cases.push_back({"sigmoid_gate",
                   "a long one",
                   kNone,
                   {random_tensor({1001, 2048}, 743), random_tensor({1001, 2048}, 744, 3.0)}});
  cases.push_back(
      {"swiglu", "weighted", kNone, {random_tensor({5003, 2 * 1408}, 726), random_tensor({5003}, 728)}});
  cases.push_back({"swiglu", "a wide row", kNone, {random_tensor({129, 2 * 10944}, 729), HostTensor()}});
  cases.push_back(
      {"mla_key_value",
       "16 heads",
       Attributes::of(ops::MlaKeyValue{.heads = 16, .nope_dim = 128, .rope_dim = 64, .v_dim = 128}),
       {random_tensor({1001, 16 * 256}, 730), random_tensor({1001, 64}, 731)},
       {0, 1},
       {},
       true});
  return cases;
}

std::vector<OpCase> large_routing_cases() {
  std::vector<OpCase> cases;
  const ops::Route v2{.top_k = 6, .scaling = 16.0};
  cases.push_back(
      {"route", "64 experts", Attributes::of(v2), {clear_logits({4099, 64}, 761), HostTensor()}, {1, 2}});
  const ops::Route v3{.top_k = 8,
                      .score = ops::ScoreFunction::sigmoid,
                      .num_groups = 8,
                      .top_groups = 4,
                      .group_score = ops::GroupScore::top2_sum,
                      .normalize = true,
                      .scaling = 2.5};
  cases.push_back({"route",
                   "256 experts in groups, biased",
                   Attributes::of(v3),
                   {clear_logits({301, 256}, 762), random_tensor({256}, 763, 0.1)},
                   {1, 2},
                   {1}});
  HostTensor scores = random_tensor({4 * 1025, 64}, 764);
  for (float& score : scores.values<float>()) score = 1.0F / (1.0F + score * score);
  for (const bool normalize : {false, true})
    cases.push_back({"balance_loss",
                     "four sequences, skewed",
                     Attributes::of(ops::BalanceLoss{.sequence_length = 1025, .normalize_scores = normalize}),
                     {scores, skewed(random_choice(4 * 1025, 6, 64, 765), 3)}});
  add_order(cases, "64 experts", random_choice(8195, 6, 64, 766), 64, 128);
  add_order(cases, "256 experts, some empty", random_choice(1999, 8, 190, 767), 256, 36);
  add_order(cases, "nearly all to one expert", skewed(random_integers({9001, 1}, 0, 16, 768), 5), 17, 8);

  const ops::RowExchange exchange{.peers = 8, .groups = 8, .max_rows = 4000};
  std::vector<std::int32_t> counts(64);
  for (std::size_t i = 0; i < counts.size(); ++i)
    counts[i] = i % 5 == 0 ? 0 : static_cast<std::int32_t>(i * 7 % 431);
  cases.push_back(
      {"order_by_expert", "8 peers", Attributes::of(exchange), {integer_tensor({64}, counts)}, {}});
  const HostTensor source = routed_order(random_choice(20011, 1, 9, 769), 9).row_slot;
  for (const std::int64_t width : {1, 96})
    cases.push_back({"gather_rows", "many rows", kNone, {random_tensor({20011, width}, 770), source}});
  return cases;
}

namespace {

/// Matrices of one shape below each other, with their momentum in `moments`. Each is nearly orthogonal (rows
/// of a cosine transform and noise), so that rounding to bf16 does not decide where it moves to; they differ
/// in size and noise.
OpCase muon_case(const char* name, std::int64_t matrices, const Shape& one, DType moments) {
  const Shape shape{matrices * one[0], one[1]};
  const auto side = static_cast<double>(std::max(one[0], one[1]));
  HostTensor gradient = random_tensor(shape, 789, 0.1 / std::sqrt(side));
  const auto values = gradient.values<float>();
  for (std::int64_t i = 0; i < gradient.num_elements(); ++i) {
    const std::int64_t row = i / one[1] % one[0], column = i % one[1];
    const double wave = std::cos(std::numbers::pi * static_cast<double>((2 * column + 1) * row) / (2 * side));
    float& value = values[static_cast<std::size_t>(i)];
    value += static_cast<float>(std::sqrt((row == 0 ? 1.0 : 2.0) / side) * wave);
    value *= static_cast<float>(10 + 10 * (i / one.num_elements() % 3));
  }
  return {
      "muon",
      name,
      Attributes::of(ops::Muon{.weight_decay = 0.1,
                               .matrix_rows = matrices > 1 ? one[0] : 0,
                               .low_copy = moments == DType::bf16,
                               .rounding = {5, 11, 13}}),
      {random_tensor(shape, 787), convert_dtype(random_tensor(shape, 788, 0.1 / std::sqrt(side)), moments),
       gradient, float_tensor({1}, {0.7F}), float_tensor({4}, {0.5F, 1.25F, 1.5F, 3.0F})},
      {}};
}

}  // namespace

std::vector<OpCase> large_optimizer_cases() {
  std::vector<OpCase> cases;
  OpCase sum{"sum_of_squares", "more tensors than one launch takes", kNone, {}, {}};
  for (std::int64_t i = 0; i < 301; ++i)
    sum.inputs.push_back(random_tensor({i * i % 40009}, 781 + static_cast<std::uint64_t>(i)));
  cases.push_back(sum);
  cases.push_back(
      {"sum_of_squares", "one large tensor", kNone, {random_tensor({3 * 1024 * 1024 + 5}, 782)}, {}});
  const Shape shape{1031, 2049};
  HostTensor v = random_tensor(shape, 783, 0.1);
  for (float& value : v.values<float>()) value *= value;
  cases.push_back({"adamw",
                   "many blocks",
                   Attributes::of(ops::AdamW{.weight_decay = 0.1}),
                   {random_tensor(shape, 784), random_tensor(shape, 785, 0.1), v, random_tensor(shape, 786),
                    float_tensor({1}, {0.7F}), float_tensor({4}, {1e-3F, 1.25F, 1.5F, 3.0F})},
                   {}});
  cases.push_back({"moving_average",
                   "many blocks",
                   Attributes::of(ops::MovingAverage{0.9}),
                   {random_tensor(shape, 790), random_tensor(shape, 791), float_tensor({1}, {0.7F}),
                    float_tensor({4}, {1e-2F, 1.25F, 1.5F, 30.0F})},
                   {}});
  cases.push_back(muon_case("many blocks of experts", 3, {512, 384}, DType::f32));
  cases.push_back(muon_case("many blocks", 1, {1031, 2049}, DType::f32));
  // More than a launch takes.
  cases.push_back(muon_case("tens of thousands of matrices", 70001, {2, 3}, DType::bf16));
  std::mt19937 random(17);
  for (int i = 0; i < 12; ++i) {
    const auto draw = [&](std::int64_t most) { return 1 + static_cast<std::int64_t>(random()) % most; };
    const std::int64_t matrices = draw(9);
    const Shape one{draw(97), draw(97)};
    cases.push_back(muon_case("random sizes", matrices, one, i % 2 == 0 ? DType::bf16 : DType::f32));
  }
  return cases;
}

std::vector<OpCase> cast_cases() {
  std::vector<OpCase> cases;
  for (const Shape& shape : {Shape{1}, Shape{0, 3}, Shape{7, 13}, Shape{1031, 2049}}) {
    const HostTensor x = random_tensor(shape, 791);
    cases.push_back({"cast", "to bf16", Attributes::of(ops::Cast{ops::CastTo::bf16}), {x}, {}});
    cases.push_back(
        {"cast", "to f32", Attributes::of(ops::Cast{ops::CastTo::f32}), {convert_dtype(x, DType::bf16)}, {}});
  }
  for (OpCase c : optimizer_cases()) {
    const auto with_copy = [&](auto a) {
      a.low_copy = true;
      c.attributes = Attributes::of(a);
    };
    if (c.op == "adamw")
      with_copy(c.attributes.get<ops::AdamW>());
    else if (c.op == "muon")
      with_copy(c.attributes.get<ops::Muon>());
    else
      continue;
    c.name += ", with a compute copy";
    cases.push_back(c);
  }
  return cases;
}

}  // namespace farskip::test
