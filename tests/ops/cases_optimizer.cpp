// SPDX-License-Identifier: Apache-2.0
// Gradient norm, clipping, updates and averages.
#include <cmath>
#include <limits>

#include "farskip/ops/optimizer_ops.h"
#include "op_case.h"

namespace farskip::test {
namespace {

OpCase clip_case(const char* name, const std::vector<double>& sums_of_squares, double max_norm) {
  OpCase c{"clip_factor", name, Attributes::of(ops::ClipFactor{max_norm}), {}, {}};
  for (const double sum_of_squares : sums_of_squares) {
    c.inputs.emplace_back(DType::f64, Shape{1});
    c.inputs.back().values<double>()[0] = sum_of_squares;
  }
  return c;
}

OpCase fault_case(const char* name, float number, const std::vector<std::int32_t>& flags) {
  OpCase c{"find_fault", name, Attributes::of(NoAttributes{}), {float_tensor({1}, {number})}, {}};
  for (const std::int32_t flag : flags) c.inputs.push_back(integer_tensor({1}, {flag}));
  return c;
}

OpCase adamw_case(const char* name, const Shape& shape, float factor, const ops::AdamW& a) {
  HostTensor v = random_tensor(shape, 403, 0.1);
  for (float& value : v.values<float>()) value *= value;
  return {"adamw",
          name,
          Attributes::of(a),
          {random_tensor(shape, 401), random_tensor(shape, 402, 0.1), v, random_tensor(shape, 404),
           float_tensor({1}, {factor}),
           float_tensor({4}, {1e-3F, 1.0F / (1.0F - 0.9F), 1.0F / (1.0F - 0.95F), 7.0F})},
          {}};
}

OpCase muon_case(const char* name, const Shape& shape, float factor, const ops::Muon& a) {
  return {"muon",
          name,
          Attributes::of(a),
          {random_tensor(shape, 421), random_tensor(shape, 422, 0.1), random_tensor(shape, 423),
           float_tensor({1}, {factor}), float_tensor({4}, {0.05F, 1.0F, 1.0F, 7.0F})},
          {},
          {},
          false,
          5e-6};
}

OpCase average_case(const char* name, const Shape& shape, float factor, double decay, float step) {
  return {"moving_average",
          name,
          Attributes::of(ops::MovingAverage{decay}),
          {random_tensor(shape, 431), random_tensor(shape, 432), float_tensor({1}, {factor}),
           float_tensor({4}, {1.0F, 1.0F, 1.0F, step})},
          {}};
}

}  // namespace

std::vector<OpCase> optimizer_cases() {
  std::vector<OpCase> cases;
  const auto none = Attributes::of(NoAttributes{});
  cases.push_back({"sum_of_squares", "one element", none, {random_tensor({1}, 411)}, {}, {}, false, 1e-12});
  cases.push_back({"sum_of_squares",
                   "tensors of all sizes, one empty",
                   none,
                   {random_tensor({3, 5}, 412), random_tensor({0, 7}, 413), random_tensor({2, 3, 7}, 414),
                    random_tensor({151, 333}, 415, 100.0), random_tensor({16384}, 416),
                    random_tensor({16385}, 417, 1e-3)},
                   {},
                   {},
                   false,
                   1e-12});
  constexpr float inf = std::numeric_limits<float>::infinity();
  cases.push_back(fault_case("nothing wrong", 3e38F, {0, 0}));
  cases.push_back(fault_case("a number alone", -2.0F, {}));
  cases.push_back(fault_case("a flag", 1.0F, {0, -1, 0}));
  cases.push_back(fault_case("an infinite number", -inf, {0}));
  cases.push_back(fault_case("no number", std::nanf(""), {}));
  std::vector<std::int32_t> many(600);
  cases.push_back(fault_case("no flag of many", 1.0F, many));
  cases.push_back(fault_case("no flag of many, but no number", std::nanf(""), many));
  many.back() = 1;
  cases.push_back(fault_case("the last of many", 1.0F, many));
  std::swap(many.front(), many.back());
  cases.push_back(fault_case("the first of many", 1.0F, many));
  cases.push_back(clip_case("a small norm is left alone", {0.25}, 1.0));
  cases.push_back(clip_case("a large norm is clipped", {1e6}, 1.5));
  cases.push_back(clip_case("zero gradient", {0.0}, 1.0));
  cases.push_back(clip_case("no clipping", {1e8}, 0.0));
  cases.push_back(clip_case("sums are added", {3.0, 0.5, 5.5}, 1.5));
  cases.push_back(clip_case("one of the sums is zero", {0.0, 0.04}, 1.0));
  cases.push_back(adamw_case("odd sizes", {3, 7}, 0.3F, {.weight_decay = 0.1}));
  cases.push_back(
      adamw_case("no decay, other betas", {129}, 1.0F, {.beta1 = 0.8, .beta2 = 0.999, .eps = 1e-6}));
  cases.push_back(adamw_case("more than one tile", {33, 1001}, 1.0F, {.weight_decay = 0.01}));
  cases.push_back(adamw_case("rows of another rank", {3, 7}, 1.0F, {.rounding = {5, 11, 13}}));
  cases.push_back(adamw_case("factor 0: nothing changes", {5, 9}, 0.0F, {.weight_decay = 0.1}));
  cases.push_back(muon_case("wide", {5, 9}, 0.3F, {.weight_decay = 0.1}));
  cases.push_back(muon_case("high", {33, 7}, 1.0F, {.momentum = 0.8}));
  cases.push_back(muon_case("one column", {7, 1}, 1.0F, {}));
  cases.push_back(muon_case("experts", {3, 8, 6}, 1.0F, {.weight_decay = 0.1, .matrix_rows = 4}));
  cases.push_back(muon_case("wide experts of odd sizes", {5 * 7, 11}, 0.3F, {.matrix_rows = 7}));
  cases.push_back(muon_case("high experts of odd sizes", {3 * 13, 5}, 1.0F, {.matrix_rows = 13}));
  cases.push_back(muon_case("experts of one row", {4, 3}, 1.0F, {.matrix_rows = 1}));
  cases.push_back(muon_case("factor 0: no expert changes", {6, 9}, 0.0F, {.matrix_rows = 2}));
  cases.push_back(muon_case("no rows", {0, 6}, 1.0F, {}));
  cases.push_back(muon_case("rows of another rank", {0, 6}, 1.0F, {.matrix_rows = 4}));
  cases.push_back(muon_case("more than one tile", {160, 131}, 1.0F, {}));
  cases.push_back(muon_case("factor 0: nothing changes", {5, 9}, 0.0F, {.weight_decay = 0.1}));
  cases.push_back(average_case("the first step", {3, 7}, 0.3F, 0.9, 1.0F));
  cases.push_back(average_case("early: a mean of all", {129}, 1.0F, 0.9, 7.0F));
  cases.push_back(average_case("late: old steps decay", {33, 1001}, 1.0F, 0.9, 11.0F));
  cases.push_back(average_case("no rows", {0, 4}, 1.0F, 0.9, 3.0F));
  cases.push_back(average_case("factor 0: nothing changes", {5, 9}, 0.0F, 0.9, 11.0F));
  return cases;
}

}  // namespace farskip::test
