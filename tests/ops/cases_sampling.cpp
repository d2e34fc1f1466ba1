// SPDX-License-Identifier: Apache-2.0
// The next token.
#include <algorithm>
#include <cmath>
#include <limits>

#include "op_case.h"
#include "ops/inference_ops.h"

namespace farskip::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct RowOptions {
  float temperature = 1.0F, top_p = 1.0F, min_p = 0.0F, penalty = 1.0F;
  std::int32_t top_k = 0;
};

/// Every row has the next of these options, and a seed and counter of its own.
OpCase sample_case(const char* name, HostTensor logits, const std::vector<RowOptions>& options, bool seen,
                   std::int64_t num_ids = 0) {
  const std::int64_t rows = logits.shape()[0], vocab = logits.shape()[1];
  HostTensor real(DType::f32, {rows, 4}), whole = random_integers({rows, 4}, -2000000000, 2000000000, 611);
  for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) {
    const RowOptions& o = options[r % options.size()];
    const float values[] = {o.temperature, o.top_p, o.min_p, o.penalty};
    std::copy_n(values, 4, real.values<float>().begin() + static_cast<std::ptrdiff_t>(4 * r));
    whole.values<std::int32_t>()[4 * r] = o.top_k;
  }
  HostTensor bits;
  if (seen) bits = random_integers({rows, (vocab + 31) / 32}, -2147483647, 2147483647, 612);
  return {"sample",
          name,
          Attributes::of(ops::Sample{num_ids}),
          {std::move(logits), std::move(real), std::move(whole), std::move(bits)},
          {}};
}

/// Each option alone and all of them together, in the middle and at their ends.
std::vector<RowOptions> every_option() {
  std::vector<RowOptions> all{{}};
  for (const float temperature : {0.0F, 1e-38F, 0.3F, 1.7F, 100.0F, 1e30F}) all.push_back({temperature});
  for (const float top_p : {0.0F, 1e-9F, 0.1F, 0.5F, 0.9F, 0.99999994F, 1.0F}) all.push_back({1.0F, top_p});
  for (const float min_p : {1e-9F, 0.05F, 0.5F, 1.0F}) all.push_back({1.0F, 1.0F, min_p});
  for (const float penalty : {0.01F, 0.8F, 1.3F, 100.0F}) all.push_back({1.0F, 1.0F, 0.0F, penalty});
  for (const std::int32_t top_k : {1, 2, 7, 40, 1000, 2147483647})
    all.push_back({1.0F, 1.0F, 0.0F, 1.0F, top_k});
  for (const float top_p : {0.2F, 0.6F, 0.95F})
    for (const std::int32_t top_k : {3, 30}) all.push_back({0.8F, top_p, 0.02F, 1.2F, top_k});
  all.push_back({0.0F, 0.5F, 0.5F, 3.0F, 5});
  return all;
}

/// Multiples of 1/2: many equal logits.
HostTensor tied_logits(const Shape& shape, std::uint64_t seed) {
  HostTensor logits = random_tensor(shape, seed);
  for (float& x : logits.values<float>()) x = std::round(x * 2.0F) / 2.0F;
  return logits;
}

/// Every third logit is -infinity.
HostTensor masked_logits(const Shape& shape, std::uint64_t seed) {
  HostTensor logits = random_tensor(shape, seed, 3.0);
  const auto values = logits.values<float>();
  for (std::size_t i = 0; i < values.size(); i += 3) values[i] = -kInfinity;
  return logits;
}

}  // namespace

std::vector<OpCase> sampling_cases() {
  const auto all = every_option();
  std::vector<OpCase> cases;
  for (const std::int64_t vocab : {1, 2, 31, 33, 64, 129, 1000, 4099}) {
    cases.push_back(sample_case("every option", random_tensor({41, vocab}, 601, 3.0), all, true));
    cases.push_back(sample_case("no seen ids", random_tensor({41, vocab}, 602, 3.0), all, false));
  }
  cases.push_back(sample_case("flat logits", random_tensor({80, 777}, 603, 0.1), all, true));
  cases.push_back(sample_case("large logits", random_tensor({80, 777}, 604, 1e4), all, true));
  cases.push_back(sample_case("tiny logits", random_tensor({41, 300}, 605, 1e-40), all, true));
  cases.push_back(sample_case("a padded vocabulary", random_tensor({41, 520}, 606, 3.0), all, true, 501));
  cases.push_back(sample_case("one id of many", random_tensor({41, 100}, 607), all, true, 1));
  cases.push_back(sample_case("equal logits", tied_logits({120, 259}, 608), all, true));
  cases.push_back(sample_case("all logits are equal", float_tensor({1, 97}, std::vector<float>(97, -2.5F)),
                              {{0.7F, 0.5F, 0.1F, 1.0F, 5}}, false));
  cases.push_back(sample_case("ids that cannot be chosen", masked_logits({82, 500}, 609), all, true));
  const std::vector<RowOptions> few = {
      {1.0F}, {0.7F, 0.9F}, {1.0F, 1.0F, 0.0F, 1.0F, 50}, {0.8F, 0.95F, 0.01F, 1.1F, 1000}, {3.0F, 0.99F}};
  for (const std::int64_t vocab : {49152, 152067})
    cases.push_back(
        sample_case("the vocabulary of a model", random_tensor({5, vocab}, 610, 2.5), few, true, vocab - 7));
  cases.push_back(sample_case("no rows", HostTensor(DType::f32, {0, 50}), all, true));
  // Rows without a choice: nothing above -infinity, a NaN of either sign, infinity.
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const RowOptions& o : {RowOptions{0.0F}, RowOptions{1.0F, 0.9F, 0.0F, 1.1F, 2}})
    cases.push_back(sample_case(
        "rows without a choice",
        float_tensor({6, 4},
                     {-kInfinity, -kInfinity, -kInfinity, -kInfinity, nan,        nan,       nan, nan, 1,
                      2,          nan,        3,          1,          -nan,       2,         3,   1,   2,
                      kInfinity,  3,          -kInfinity, -3e38F,     -kInfinity, -kInfinity}),
        {o}, true));
  return cases;
}

}  // namespace farskip::test
