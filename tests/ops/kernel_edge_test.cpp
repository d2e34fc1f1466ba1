// SPDX-License-Identifier: Apache-2.0
// What the table of every_op_test.cpp cannot say: values from elsewhere, and inputs that are wrong.
#include <cmath>
#include <limits>
#include <set>

#include "farskip/ops/optimizer_ops.h"
#include "interpreter.h"
#include "op_case.h"
#include "ops/collective_ops.h"
#include "support/catch.h"

namespace farskip::test {
namespace {

// Angle per position of each pair, from ROPE_INIT_FUNCTIONS["yarn"] of transformers 5.23 run in f64.
struct YarnRow {
  ops::RopeTable attributes;
  std::vector<std::pair<std::size_t, double>> angles;  // pair, angle
};

const std::vector<YarnRow>& yarn_rows() {
  using ops::RopeScaling;
  static const std::vector<YarnRow> rows = {
      {{.dim = 8, .scaling = RopeScaling::yarn, .factor = 4.0, .original_positions = 32},
       {{0, 1.0}, {1, 0.025}, {2, 0.0025}, {3, 0.00025}}},
      {{.dim = 64, .scaling = RopeScaling::yarn, .factor = 40.0, .original_positions = 4096},
       {{0, 1.0},
        {10, 0.056234132519},
        {11, 0.0390069265671},
        {15, 0.00833450895102},
        {22, 0.000177827941004},
        {23, 3.33380358041e-05},
        {31, 3.33380358041e-06}}},
      {{.dim = 4, .scaling = RopeScaling::yarn, .factor = 2.0, .original_positions = 6},
       {{0, 1.0}, {1, 0.005}}},
      {{.dim = 16,
        .theta = 50000.0,
        .scaling = RopeScaling::yarn,
        .factor = 8.0,
        .original_positions = 128,
        .beta_fast = 4.0,
        .beta_slow = 0.5},
       {{0, 1.0}, {1, 0.258600136306}, {2, 0.0376166421549}, {3, 0.00216170417526}, {7, 9.66743496623e-06}}}};
  return rows;
}

TEST_CASE("YaRN frequencies are those of transformers") {
  for (const YarnRow& row : yarn_rows()) {
    ops::RopeTable attributes = row.attributes;
    attributes.positions = 51;
    attributes.attention_factor = 1.25;
    const auto table = run_op("rope_table", attributes, {});
    const auto* values = table[0].view().as<float>();
    for (const auto& [pair, angle] : row.angles)
      for (const std::int64_t position : {1, 50}) {
        INFO(Attributes::of(attributes).text() << ", pair " << pair << ", position " << position);
        const auto at = static_cast<std::size_t>(position * attributes.dim) + pair;
        const auto half = static_cast<std::size_t>(attributes.dim / 2);
        const double turned = static_cast<double>(position) * angle;
        CHECK(static_cast<double>(values[at]) ==
              Catch::Approx(1.25 * std::cos(turned)).epsilon(1e-6).margin(1e-7));
        CHECK(static_cast<double>(values[at + half]) ==
              Catch::Approx(1.25 * std::sin(turned)).epsilon(1e-6).margin(1e-9));
      }
  }
}

TEST_CASE("logits that are not numbers still give valid and distinct experts") {
  HostTensor logits = random_tensor({4, 8}, 1);
  for (std::size_t e = 0; e < 8; ++e) logits.values<float>()[e] = std::nanf("");
  logits.values<float>()[9] = std::nanf("");
  logits.values<float>()[16] = std::numeric_limits<float>::infinity();
  logits.values<float>()[24] = -std::numeric_limits<float>::infinity();
  for (const auto score : {ops::ScoreFunction::softmax, ops::ScoreFunction::sigmoid})
    for (const std::int64_t top_groups : {2, 4}) {
      const ops::Route a{.top_k = 4,
                         .score = score,
                         .num_groups = 4,
                         .top_groups = top_groups,
                         .group_score = ops::GroupScore::top2_sum};
      const auto out = run_op("route", a, {logits.view(), {}});
      const auto* indices = out[0].view().as<std::int32_t>();
      for (int t = 0; t < 4; ++t) {
        const std::set<std::int32_t> experts(indices + 4 * t, indices + 4 * t + 4);
        INFO("token " << t);
        CHECK(experts.size() == 4);
        CHECK(*experts.begin() >= 0);
        CHECK(*experts.rbegin() < 8);
      }
    }
}

TEST_CASE("a token outside the vocabulary and an expert outside the layer are refused, not read") {
  const HostTensor table = random_tensor({5, 3}, 1), dy = random_tensor({2, 3}, 2);
  for (const std::int32_t wrong : {5, -1}) {
    const HostTensor tokens = integer_tensor({2}, {1, wrong});
    CHECK_THROWS_AS(run_op("embedding", ops::VocabularyPart{}, {table.view(), tokens.view()}), InternalError);
    CHECK_THROWS_AS(run_op("embedding_grad", ops::EmbeddingGrad{5}, {dy.view(), tokens.view()}),
                    InternalError);
    const HostTensor indices = integer_tensor({1, 2}, {1, wrong});
    CHECK_THROWS_AS(run_op("sort_by_expert", ops::SortByExpert{5}, {indices.view()}), InternalError);
  }
}

TEST_CASE("a gradient norm that is not finite gives the factor that skips the update") {
  // The norm of the last one is finite, but beyond the range of the f32 that says it.
  for (const float wrong : {std::nanf(""), std::numeric_limits<float>::infinity(), 3e38F})
    for (const double max_norm : {0.0, 1.0}) {
      const HostTensor gradient = float_tensor({3}, {wrong, wrong, 2.0F});
      const auto sum = run_op("sum_of_squares", NoAttributes{}, {gradient.view()});
      const auto clip = run_op("clip_factor", ops::ClipFactor{max_norm}, {sum[0].view()});
      CHECK_FALSE(std::isfinite(clip[0].view().as<float>()[0]));
      const float factor = clip[1].view().as<float>()[0];
      CHECK(factor == 0.0F);

      const HostTensor p = random_tensor({3}, 1), m = random_tensor({3}, 2), v = random_tensor({3}, 3);
      const HostTensor factors = float_tensor({1}, {factor}),
                       hyper = float_tensor({4}, {1e-3F, 1.0F, 1.0F, 1.0F});
      const auto after =
          run_op("adamw", ops::AdamW{.weight_decay = 0.1},
                 {p.view(), m.view(), v.view(), gradient.view(), factors.view(), hyper.view()});
      CHECK(after[0].same_bits(Buffer::copy_of(p.view())));
      CHECK(after[1].same_bits(Buffer::copy_of(m.view())));
      CHECK(after[2].same_bits(Buffer::copy_of(v.view())));
    }
}

TEST_CASE("squares whose sum no f32 can hold are summed") {
  const HostTensor large = float_tensor({2}, {3e30F, 4e30F});
  const auto sum = run_op("sum_of_squares", NoAttributes{}, {large.view()});
  CHECK(sum[0].view().as<double>()[0] == Catch::Approx(25e60).epsilon(1e-6));
}

TEST_CASE("rows that nobody gathered or scattered to are left alone") {
  const HostTensor x = random_tensor({6, 3}, 501), source = integer_tensor({4}, {5, 0, 3, 0});
  const auto gathered = run_op("gather_rows", NoAttributes{}, {x.view(), source.view()});
  const HostTensor targets = integer_tensor({4}, {6, 1, 4, 2});
  const auto scattered = run_op("scatter_rows", ops::ScatterRows{7}, {gathered[0].view(), targets.view()});
  const std::vector<std::int64_t> from{-1, 0, 0, -1, 3, -1, 5};
  for (std::int64_t r = 0; r < 7; ++r)
    for (std::int64_t i = 0; i < 3; ++i) {
      const float value = scattered[0].view().as<float>()[r * 3 + i];
      const std::int64_t row = from[static_cast<std::size_t>(r)];
      CHECK((row < 0 ? std::isnan(value) : value == x.view().as<float>()[row * 3 + i]));
    }
}

TEST_CASE("the clip factor is 0 where one of several sums is not finite") {
  HostTensor good(DType::f64, {1}), bad(DType::f64, {1});
  good.values<double>()[0] = 2.0;
  for (const double value :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    bad.values<double>()[0] = value;
    const auto out = run_op("clip_factor", ops::ClipFactor{1.0}, {good.view(), bad.view(), good.view()});
    CHECK_FALSE(std::isfinite(element(out[0].view(), 0)));
    CHECK(element(out[1].view(), 0) == 0.0);
  }
}

}  // namespace
}  // namespace farskip::test
