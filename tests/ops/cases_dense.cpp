// SPDX-License-Identifier: Apache-2.0
// Embedding, sums, matrix products, columns and the fused loss.
#include <array>

#include "farskip/ops/ops.h"
#include "op_case.h"

namespace farskip::test {
namespace {

OpCase matmul_case(std::string name, std::int64_t m, std::int64_t n, std::int64_t k, ops::Matmul a,
                   bool accumulate) {
  OpCase c{"matmul",
           std::move(name),
           Attributes::of(a),
           {random_tensor(a.transpose_a ? Shape{k, m} : Shape{m, k}, 1),
            random_tensor(a.transpose_b ? Shape{n, k} : Shape{k, n}, 2)}};
  if (accumulate) c.inputs.push_back(random_tensor({m, n}, 3));
  return c;
}

void add_matmul(std::vector<OpCase>& cases) {
  for (const bool ta : {false, true})
    for (const bool tb : {false, true}) {
      cases.push_back(matmul_case("odd sizes", 13, 7, 19, {ta, tb}, false));
      cases.push_back(matmul_case("odd sizes, added to a tensor", 5, 33, 3, {ta, tb}, true));
    }
  const ops::Matmul linear{.transpose_a = false, .transpose_b = true};
  cases.push_back(matmul_case("one token", 1, 37, 65, linear, false));
  cases.push_back(matmul_case("one element", 1, 1, 1, linear, false));
  cases.push_back(matmul_case("more than one tile", 131, 70, 259, linear, false));
  cases.push_back(matmul_case("no rows", 0, 5, 4, linear, false));
  cases.push_back(matmul_case("weight gradient of one token", 17, 9, 1, {.transpose_a = true}, true));
}

void add_grouped_matmul(std::vector<OpCase>& cases) {
  struct Row {
    const char* name;
    std::vector<std::int32_t> offsets;
    std::int64_t n, k;
  };
  for (const Row& row :
       {Row{"uneven experts, two empty", {0, 0, 5, 5, 12, 13}, 7, 9},
        Row{"all rows to one expert", {0, 0, 11, 11}, 5, 3}, Row{"one row", {0, 0, 1}, 33, 17},
        Row{"no rows", {0, 0, 0}, 4, 6}, Row{"rows of more than one tile", {0, 130, 131, 300}, 34, 18}})
    for (const bool transpose : {true, false}) {
      const auto num_experts = static_cast<std::int64_t>(row.offsets.size()) - 1;
      cases.push_back(
          {"grouped_matmul",
           row.name,
           Attributes::of(ops::GroupedMatmul{transpose}),
           {random_tensor({row.offsets.back(), transpose ? row.k : row.n}, 11),
            random_tensor({num_experts, row.n, row.k}, 12), integer_tensor({num_experts + 1}, row.offsets)}});
    }
}

void add_columns(std::vector<OpCase>& cases) {
  cases.push_back({"split_columns",
                   "three parts",
                   Attributes::of(ops::SplitColumns{{3, 1, 8}}),
                   {random_tensor({5, 12}, 21)},
                   {0, 1, 2},
                   {},
                   true});
  cases.push_back({"split_columns",
                   "one part, one token",
                   Attributes::of(ops::SplitColumns{{7}}),
                   {random_tensor({1, 7}, 22)}});
  cases.push_back({"split_columns",
                   "many rows",
                   Attributes::of(ops::SplitColumns{{30, 70}}),
                   {random_tensor({500, 100}, 23)},
                   {0, 1},
                   {},
                   true});
  for (const auto& [name, range, rows] :
       {std::tuple{"in the middle", ops::ColumnRange{3, 5, 12}, std::int64_t{7}},
        {"the last ones, of many rows", ops::ColumnRange{72, 28, 100}, std::int64_t{300}},
        {"all of them", ops::ColumnRange{0, 9, 9}, std::int64_t{1}}}) {
    cases.push_back({"take_columns", name, Attributes::of(range), {random_tensor({rows, range.of}, 25)}});
    cases.push_back({"place_columns", name, Attributes::of(range), {random_tensor({rows, range.count}, 26)}});
  }
  cases.push_back({"concat_columns",
                   "three parts",
                   Attributes::of(NoAttributes{}),
                   {random_tensor({4, 2}, 24), random_tensor({4, 9}, 25), random_tensor({4, 1}, 26)}});
  cases.push_back(
      {"concat_columns", "one part", Attributes::of(NoAttributes{}), {random_tensor({3, 5}, 27)}});
}

void add_rows(std::vector<OpCase>& cases) {
  cases.push_back({"split_rows",
                   "uneven parts",
                   Attributes::of(ops::SplitRows{{3, 1, 4}}),
                   {random_tensor({8, 5}, 28)},
                   {0, 1, 2},
                   {},
                   true});
  cases.push_back({"split_rows",
                   "of a vector",
                   Attributes::of(ops::SplitRows{{2, 3}}),
                   {random_tensor({5}, 29)},
                   {0, 1},
                   {},
                   true});
  cases.push_back({"split_rows",
                   "many tiles",
                   Attributes::of(ops::SplitRows{{301, 300}}),
                   {random_tensor({601, 131}, 30)},
                   {0, 1},
                   {},
                   true});
  cases.push_back({"split_rows",
                   "integers",
                   Attributes::of(ops::SplitRows{{4, 3}}),
                   {random_integers({7, 2}, 0, 100, 31)},
                   {}});
  cases.push_back({"concat_rows",
                   "uneven parts",
                   Attributes::of(NoAttributes{}),
                   {random_tensor({3, 5}, 32), random_tensor({1, 5}, 33), random_tensor({9, 5}, 34)}});
  cases.push_back({"concat_rows",
                   "vectors",
                   Attributes::of(NoAttributes{}),
                   {random_tensor({3}, 35), random_tensor({4}, 36)}});
  cases.push_back({"concat_rows", "one part", Attributes::of(NoAttributes{}), {random_tensor({2, 3}, 37)}});
  cases.push_back({"concat_rows",
                   "integers",
                   Attributes::of(NoAttributes{}),
                   {random_integers({4, 2}, 0, 100, 38), random_integers({3, 2}, 0, 100, 39)},
                   {}});
}

void add_embedding(std::vector<OpCase>& cases) {
  const auto add = [&](const char* name, const ops::VocabularyPart& part, HostTensor table,
                       HostTensor tokens) {
    cases.push_back({"embedding", name, Attributes::of(part), {std::move(table), std::move(tokens)}});
  };
  add("a token twice", {}, random_tensor({9, 5}, 41), integer_tensor({4}, {2, 8, 2, 0}));
  add("one token", {}, random_tensor({3, 1}, 42), integer_tensor({1}, {2}));
  add("the same token always", {}, random_tensor({2, 300}, 43), random_integers({77}, 1, 2, 44));
  add("no tokens", {}, random_tensor({2, 3}, 45), HostTensor(DType::i32, {0}));
  // 1031 ids in parts of 258: 257 in the last.
  for (const std::int64_t first : {0, 258, 774})
    add("a part of a vocabulary", {first, 1031}, random_tensor({258, 7}, 48),
        random_integers({301}, 0, 1031, 49));
  add("no token of a part", {5, 12}, random_tensor({3, 4}, 50), integer_tensor({4}, {0, 4, 8, 11}));
}

void add_side_by_side(std::vector<OpCase>& cases) {
  for (const auto& [parts, rows, width, columns] : std::vector<std::array<std::int64_t, 4>>{
           {1, 3, 5, 5}, {2, 3, 5, 10}, {2, 7, 5, 9}, {4, 1, 16, 61}, {3, 0, 2, 5}, {9, 70, 131, 1050}})
    cases.push_back({"side_by_side",
                     "parts",
                     Attributes::of(ops::SideBySide{parts, columns}),
                     {random_tensor({parts * rows, width}, 51)},
                     {}});
}

/// One part of a vocabulary of `of` ids that is cut over `parts`.
void add_part_loss(std::vector<OpCase>& cases, const char* name, std::int64_t of, std::int64_t parts,
                   std::int64_t hidden, double stddev, const HostTensor& targets) {
  const std::int64_t tokens = targets.num_elements(), rows = (of + parts - 1) / parts;
  for (const std::int64_t part : {std::int64_t{0}, parts - 1})
    cases.push_back(
        {"head_stats",
         name,
         Attributes::of(ops::VocabularyPart{part * rows, of}),
         {random_tensor({tokens, hidden}, 61, stddev), random_tensor({rows, hidden}, 62), targets},
         {0}});
  const HostTensor sums = random_tensor({parts * tokens, ops::kNumHeadSums}, 63, 2.0);
  const HostTensor fixed = random_tensor({parts * tokens, ops::kNumHeadFixed}, 64);
  const Attributes joint = Attributes::of(ops::JointParts{rows});
  cases.push_back({"joint_cross_entropy", name, joint, {sums, fixed, targets}, {0}, {1}});
  cases.push_back({"joint_token_losses", name, joint, {sums, fixed, targets}, {}});
}

void add_part_losses(std::vector<OpCase>& cases) {
  add_part_loss(cases, "all ids here", 19, 1, 7, 0.5, integer_tensor({6}, {3, -1, 18, 0, -1, 7}));
  add_part_loss(cases, "some tokens not counted", 19, 2, 7, 0.5, integer_tensor({6}, {3, -1, 18, 9, -1, 10}));
  add_part_loss(cases, "one token", 5, 3, 3, 1.0, integer_tensor({1}, {4}));
  add_part_loss(cases, "large logits", 11, 3, 9, 20.0, random_integers({8}, 0, 11, 65));
  add_part_loss(cases, "blocks of tokens and of vocabulary", 9001, 2, 3, 0.3,
                random_integers({301}, -1, 9001, 66));
  add_part_loss(cases, "no token counted", 6, 2, 4, 1.0, integer_tensor({3}, {-1, -1, -1}));
  add_part_loss(cases, "no tokens", 6, 2, 4, 1.0, HostTensor(DType::i32, {0}));
}

void add_loss(std::vector<OpCase>& cases) {
  const auto add_cases = [&](const char* name, std::int64_t vocab, std::int64_t hidden, double stddev,
                             const HostTensor& targets) {
    OpCase sum{"linear_cross_entropy",
               name,
               Attributes::of(NoAttributes{}),
               {random_tensor({targets.num_elements(), hidden}, 31, stddev),
                random_tensor({vocab, hidden}, 32), targets}};
    OpCase of_tokens = sum;
    of_tokens.op = "token_losses";
    of_tokens.differentiated = {};
    cases.push_back(std::move(sum));
    cases.push_back(std::move(of_tokens));
  };
  add_cases("some tokens not counted", 19, 7, 0.5, integer_tensor({6}, {3, -1, 18, 0, -1, 7}));
  add_cases("one token", 5, 3, 1.0, integer_tensor({1}, {4}));
  add_cases("large logits", 11, 9, 20.0, random_integers({8}, 0, 11, 33));
  add_cases("blocks of tokens and of vocabulary", 1031, 16, 0.3, random_integers({301}, -1, 1031, 34));
  add_cases("no token counted", 6, 4, 1.0, integer_tensor({3}, {-1, -1, -1}));
}

void add_elementwise(std::vector<OpCase>& cases) {
  const Attributes none = Attributes::of(NoAttributes{});
  for (const Shape& shape : {Shape{1, 1}, Shape{7, 13}, Shape{333, 104}, Shape{0, 4}}) {
    const std::string name = shape.text();
    const auto x = [&](std::uint64_t seed) { return random_tensor(shape, seed); };
    cases.push_back({"clamp", name, Attributes::of(ops::Clamp{0.7}), {x(171)}});
    cases.push_back({"add_bias", name, none, {x(176), random_tensor({shape[1]}, 177)}});
    cases.push_back({"scale_rows", name, none, {x(172), random_tensor({shape[0]}, 173)}});
    cases.push_back({"sigmoid_gate", name, none, {x(174), random_tensor(shape, 175, 3.0)}});
  }
  for (const std::int64_t size : {1, 37, 600})
    cases.push_back({"ones", std::to_string(size), Attributes::of(ops::Ones{size}), {}, {}});
}

}  // namespace

std::vector<OpCase> dense_cases() {
  std::vector<OpCase> cases;
  const auto none = Attributes::of(NoAttributes{});
  add_embedding(cases);
  add_side_by_side(cases);
  add_part_losses(cases);
  cases.push_back({"add", "odd sizes", none, {random_tensor({7, 13}, 46), random_tensor({7, 13}, 47)}});
  cases.push_back(
      {"add", "more than one tile", none, {random_tensor({333, 101}, 48), random_tensor({333, 101}, 49)}});
  cases.push_back({"add", "no rows", none, {random_tensor({0, 4}, 48), random_tensor({0, 4}, 49)}});
  add_elementwise(cases);
  add_matmul(cases);
  add_grouped_matmul(cases);
  add_columns(cases);
  add_rows(cases);
  add_loss(cases);
  return cases;
}

}  // namespace farskip::test
