// SPDX-License-Identifier: Apache-2.0
// Norm, rotary embedding and activation.
#include "farskip/ops/ops.h"
#include "op_case.h"

namespace farskip::test {
namespace {

OpCase norm_case(const char* name, std::int64_t tokens, std::int64_t groups, std::int64_t size,
                 double stddev = 1.0, double eps = 1e-6) {
  return {"rms_norm",
          name,
          Attributes::of(ops::RmsNorm{eps}),
          {random_tensor({tokens, groups * size}, 101, stddev), random_tensor({size}, 102, 0.5, 1.0)}};
}

ops::RopeTable yarn(std::int64_t positions, std::int64_t dim, std::int64_t original, double factor) {
  return {.positions = positions,
          .dim = dim,
          .theta = 10000.0,
          .scaling = ops::RopeScaling::yarn,
          .factor = factor,
          .original_positions = original,
          .attention_factor = 0.9};
}

void add_rope(std::vector<OpCase>& cases) {
  const auto table_case = [](const char* name, const ops::RopeTable& a, HostTensor positions = {}) {
    return OpCase{"rope_table", name, Attributes::of(a), {std::move(positions)}, {}};
  };
  cases.push_back(table_case("plain", {.positions = 67, .dim = 6, .theta = 10000.0}));
  cases.push_back(table_case("one position, one pair", {.positions = 1, .dim = 2, .theta = 8e6}));
  cases.push_back(table_case("YaRN of a small model", yarn(128, 8, 32, 4.0)));
  cases.push_back(table_case("YaRN of DeepSeek-V2", yarn(300, 64, 4096, 40.0)));
  cases.push_back(table_case("YaRN whose two bounds meet", yarn(9, 4, 6, 2.0)));
  cases.push_back(
      table_case("linear", {.positions = 33, .dim = 6, .scaling = ops::RopeScaling::linear, .factor = 2.5}));
  cases.push_back(table_case("llama3 of Llama 3.2", {.positions = 300,
                                                     .dim = 64,
                                                     .theta = 5e5,
                                                     .scaling = ops::RopeScaling::llama3,
                                                     .factor = 32.0,
                                                     .original_positions = 8192,
                                                     .beta_fast = 4.0,
                                                     .beta_slow = 1.0}));

  cases.push_back(table_case("given positions", yarn(4, 8, 32, 4.0), integer_tensor({4}, {77, 0, 3, 3})));

  const auto temperature_case = [](const char* name, const ops::AttentionTemperature& a,
                                   HostTensor positions = {}) {
    return OpCase{"attention_temperature", name, Attributes::of(a), {std::move(positions)}, {}};
  };
  cases.push_back(temperature_case("two sequences, many steps", {90, 45, 4, 0.1}));
  cases.push_back(temperature_case("no step", {11, 11, 8192, 0.1}));
  cases.push_back(temperature_case("one token", {1, 1, 1, 0.5}));
  cases.push_back(temperature_case("given positions", {3, 3, 4, 0.1}, integer_tensor({3}, {90, 0, 7})));

  struct Row {
    const char* name;
    std::int64_t tokens, positions, heads;
    ops::Rope a;
  };
  for (const Row& row :
       {Row{"whole heads", 6, 6, 3, {.head_dim = 10, .offset = 0, .dim = 10}},
        Row{"the tail of a head, two sequences", 10, 5, 2, {.head_dim = 11, .offset = 3, .dim = 8}},
        Row{"the middle of a head, one token", 1, 1, 1, {.head_dim = 9, .offset = 2, .dim = 2}},
        Row{"many tokens", 700, 70, 2, {.head_dim = 24, .offset = 8, .dim = 16}}})
    for (const bool interleaved : {false, true})
      for (const bool inverse : {false, true}) {
        ops::Rope a = row.a;
        a.interleaved = interleaved;
        a.inverse = inverse;
        cases.push_back({"rope",
                         row.name,
                         Attributes::of(a),
                         {random_tensor({row.tokens, row.heads * a.head_dim}, 111),
                          random_tensor({row.positions, a.dim}, 112)},
                         {0},
                         {1}});
      }
}

void add_swiglu(std::vector<OpCase>& cases) {
  const auto none = Attributes::of(NoAttributes{});
  cases.push_back({"swiglu", "odd sizes", none, {random_tensor({5, 2 * 7}, 121), HostTensor()}});
  cases.push_back(
      {"swiglu", "weighted rows", none, {random_tensor({6, 2 * 35}, 122), random_tensor({6}, 123)}});
  cases.push_back({"swiglu", "one element", none, {random_tensor({1, 2}, 124), random_tensor({1}, 125)}});
  cases.push_back(
      {"swiglu", "large values", none, {random_tensor({4, 2 * 33}, 126, 30.0), random_tensor({4}, 127)}});
  cases.push_back(
      {"swiglu", "many rows", none, {random_tensor({400, 2 * 97}, 128), random_tensor({400}, 129)}});
  cases.push_back({"swiglu", "no rows", none, {random_tensor({0, 2 * 5}, 130), random_tensor({0}, 131)}});
}

}  // namespace

std::vector<OpCase> rowwise_cases() {
  std::vector<OpCase> cases;
  cases.push_back(norm_case("rows", 5, 1, 33));
  cases.push_back(norm_case("heads", 6, 4, 7));
  cases.push_back(norm_case("one element", 1, 1, 1));
  cases.push_back(norm_case("more than one block of rows", 203, 1, 70));
  cases.push_back(norm_case("many heads", 50, 5, 16));
  cases.push_back(norm_case("small values, where eps counts", 4, 1, 12, 1e-3, 1e-5));
  cases.push_back(norm_case("a long row", 2, 1, 2500));
  cases.push_back(norm_case("no rows", 0, 1, 8));
  add_rope(cases);
  add_swiglu(cases);
  return cases;
}

}  // namespace farskip::test
