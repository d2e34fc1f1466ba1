// SPDX-License-Identifier: Apache-2.0
// How often the op `sample` chooses what, and on what that depends.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "farskip/base/random.h"
#include "farskip/tensor/safetensors.h"
#include "ops/inference_ops.h"
#include "run_kernel.h"
#include "support/catch.h"
#include "support/support.h"

using namespace farskip;
using namespace farskip::test;

namespace {

struct Options {
  float temperature = 1.0F, top_p = 1.0F, min_p = 0.0F, penalty = 1.0F;
  std::int32_t top_k = 0, seed = 1;
};

/// Ids for rows of logits [n, V]; row r has options[r % …] and counter first + r. `seen`: empty, or for each
/// id whether it stands in all texts.
std::vector<std::int32_t> sample(const HostTensor& logits, const std::vector<Options>& options,
                                 std::int32_t first = 0, const std::vector<bool>& seen = {}) {
  const std::int64_t rows = logits.shape()[0];
  std::vector<float> real;
  std::vector<std::int32_t> whole;
  for (std::int64_t r = 0; r < rows; ++r) {
    const Options& o = options[static_cast<std::size_t>(r) % options.size()];
    real.insert(real.end(), {o.temperature, o.top_p, o.min_p, o.penalty});
    whole.insert(whole.end(), {o.top_k, o.seed, 0, first + static_cast<std::int32_t>(r)});
  }
  KernelRun run{.op = "sample",
                .attributes = Attributes::of(ops::Sample{}),
                .inputs = {logits, floats({rows, 4}, real), integers({rows, 4}, whole)},
                .outputs = {{DType::i32, Shape{rows}, {}}}};
  if (!seen.empty()) {
    const Shape words{rows, (logits.shape()[1] + 31) / 32};
    std::vector<std::uint32_t> bits(static_cast<std::size_t>(words.num_elements()));
    for (std::size_t i = 0; i < bits.size() * 32; ++i)
      if (const std::size_t id = i % (32 * static_cast<std::size_t>(words[1])); id < seen.size() && seen[id])
        bits[i / 32] |= 1U << (i % 32);
    run.inputs.push_back(integers(words, {bits.begin(), bits.end()}));
  }
  const auto out = run_kernel(run);
  const auto ids = out[0].values<std::int32_t>();
  return {ids.begin(), ids.end()};
}

/// The same row so many times.
HostTensor repeated(const std::vector<float>& row, std::int64_t times) {
  std::vector<float> rows;
  for (std::int64_t i = 0; i < times; ++i) rows.insert(rows.end(), row.begin(), row.end());
  return floats({times, static_cast<std::int64_t>(row.size())}, rows);
}

/// Probabilities of the ids that a full sort keeps.
Doubles probabilities(const std::vector<float>& logits, const Options& o) {
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
  if (o.top_k > 0) order.resize(static_cast<std::size_t>(o.top_k));
  const auto mass = [&](std::size_t id) { return std::exp((logits[id] - logits[order[0]]) / o.temperature); };
  const auto sum = [&] {
    return std::accumulate(order.begin(), order.end(), 0.0, [&](double s, auto id) { return s + mass(id); });
  };
  const double total = sum();
  while (o.top_p < 1.0F && sum() - mass(order.back()) >= o.top_p * total) order.pop_back();
  while (mass(order.back()) < o.min_p) order.pop_back();
  Doubles all(logits.size(), 0.0);
  for (const std::size_t id : order) all[id] = mass(id) / sum();
  return all;
}

}  // namespace

TEST_CASE("tokens are drawn as often as their probabilities say, and others never") {
  std::mt19937 random(7);
  std::normal_distribution<float> normal(0.0F, 1.0F);
  std::vector<float> logits(23);
  for (float& x : logits) x = normal(random);
  const int draws = 40000;
  for (const Options& o :
       {Options{1.0F}, Options{0.5F}, Options{3.0F}, Options{1.0F, 1.0F, 0.0F, 1.0F, 5}, Options{1.0F, 0.7F},
        Options{1.0F, 1.0F, 0.1F}, Options{1.3F, 0.8F, 0.2F, 1.0F, 12}}) {
    INFO("temperature " << o.temperature << ", top_p " << o.top_p << ", min_p " << o.min_p << ", top_k "
                        << o.top_k);
    const Doubles expected = probabilities(logits, o);
    Doubles counts(logits.size(), 0.0);
    for (const std::int32_t id : sample(repeated(logits, draws), {o})) ++counts[static_cast<std::size_t>(id)];
    double chi_square = 0.0, kept = 0.0;
    for (std::size_t id = 0; id < logits.size(); ++id) {
      if (expected[id] == 0.0) {
        CHECK(counts[id] == 0.0);
        continue;
      }
      kept += 1.0;
      const double mean = expected[id] * draws;
      chi_square += (counts[id] - mean) * (counts[id] - mean) / mean;
    }
    REQUIRE(kept >= 2.0);
    const double freedom = kept - 1.0;
    CHECK(chi_square < freedom + 4.0 * std::sqrt(2.0 * freedom));  // four standard deviations
  }
}

TEST_CASE("tokens are drawn by the probabilities that transformers gives them") {
  const SafetensorsFile reference(fixtures() / "sampling" / "reference.safetensors");
  const HostTensor logits = reference.read("logits"), seen = reference.read("seen"),
                   options = reference.read("options"), probabilities = reference.read("probabilities");
  const auto vocab = static_cast<std::size_t>(logits.shape()[1]);
  constexpr std::int32_t draws = 300;
  for (std::size_t r = 0; r < static_cast<std::size_t>(logits.shape()[0]); ++r) {
    const float* row = logits.view().as<float>() + r * vocab;
    const float* o = options.view().as<float>() + r * 5;
    const auto* marks = seen.view().as<std::int32_t>() + r * vocab;
    INFO("row " << r << ": temperature " << o[0] << ", top_p " << o[1] << ", min_p " << o[2] << ", penalty "
                << o[3] << ", top_k " << o[4]);
    const auto ids = sample(repeated({row, row + vocab}, draws),
                            {{o[0], o[1], o[2], o[3], static_cast<std::int32_t>(o[4])}}, 0,
                            std::vector<bool>(marks, marks + vocab));
    for (std::int32_t n = 0; n < draws; ++n) {
      const double at = uniform_double(1, 0x73616d706c65, static_cast<std::uint64_t>(n));
      const double* p = probabilities.view().as<double>() + r * vocab;
      std::int32_t expected = 0;
      for (double sum = p[0]; sum <= at; sum += p[expected]) ++expected;
      CHECK(ids[static_cast<std::size_t>(n)] == expected);
    }
  }
}

TEST_CASE("a row gets the same token whatever else is in the batch") {
  std::mt19937 random(8);
  const std::vector<Options> options = {{1.0F}, {0.0F}, {1.2F, 0.9F, 0.0F, 1.0F, 20}, {0.9F, 0.5F, 0.1F}};
  const HostTensor logits = random_floats({12, 301}, random, 2.0F);
  const auto together = sample(logits, options);
  for (std::int64_t r = 0; r < 12; ++r) {
    const auto row = logits.values<float>().subspan(static_cast<std::size_t>(r) * 301, 301);
    const auto alone =
        sample(floats({1, 301}, {row.begin(), row.end()}),
               {options[static_cast<std::size_t>(r) % options.size()]}, static_cast<std::int32_t>(r));
    CHECK(alone[0] == together[static_cast<std::size_t>(r)]);
  }
}

TEST_CASE("seed and counter both decide, and the same ones repeat") {
  const HostTensor flat = repeated(std::vector<float>(1000, 0.5F), 50);
  const auto first = sample(flat, {{1.0F}});
  CHECK(sample(flat, {{1.0F}}) == first);
  CHECK(sample(flat, {{1.0F, 1.0F, 0.0F, 1.0F, 0, 2}}) != first);
  CHECK(sample(flat, {{1.0F}}, 50) != first);
  // Counters give different tokens: 50 of 1000 meet in a pair or two.
  auto distinct = first;
  std::sort(distinct.begin(), distinct.end());
  CHECK(std::unique(distinct.begin(), distinct.end()) - distinct.begin() > 40);
}
