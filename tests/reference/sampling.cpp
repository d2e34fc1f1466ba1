// SPDX-License-Identifier: Apache-2.0
// Reference kernel of sampling: sorts the vocabulary and works on probabilities.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "farskip/base/random.h"
#include "ops/inference_ops.h"
#include "reference/reference.h"

namespace farskip::reference {
namespace {

struct Options {
  double temperature, top_p, min_p, penalty;
  std::int64_t top_k;
  std::uint64_t seed, counter;
};

struct Candidates {
  std::vector<std::int32_t> ids;  // the most likely first
  std::vector<double> logits;     // of every id

  /// Probability relative to that of the most likely one.
  double mass(std::int32_t id) const { return std::exp(logits[id] - logits[ids[0]]); }
  /// Keeps so many, and those that are equal to the last of them.
  void keep(std::size_t count) {
    count = std::clamp<std::size_t>(count, 1, ids.size());
    while (count < ids.size() && logits[ids[count]] == logits[ids[count - 1]]) ++count;
    ids.resize(count);
  }
};

void keep_top_p(Candidates& c, double top_p) {
  if (top_p >= 1.0) return;
  double total = 0.0, sum = 0.0;
  for (const std::int32_t id : c.ids) total += c.mass(id);
  std::size_t count = 0;
  while (count < c.ids.size() && sum < top_p * total) sum += c.mass(c.ids[count++]);
  c.keep(count);
}

std::int32_t draw(Candidates c, const Options& options) {
  for (double& logit : c.logits) logit /= options.temperature;
  if (options.top_k > 0) c.keep(static_cast<std::size_t>(options.top_k));
  keep_top_p(c, options.top_p);
  std::vector<double> masses(c.logits.size(), 0.0);  // of what is kept, by id
  for (const std::int32_t id : c.ids)
    if (c.mass(id) >= options.min_p) masses[id] = c.mass(id);
  const double total = std::accumulate(masses.begin(), masses.end(), 0.0);
  const double point = uniform_double(options.seed, 0x73616d706c65, options.counter) * total;
  double sum = 0.0;
  std::int32_t id = 0;
  while ((sum += masses[id]) <= point) ++id;
  return id;
}

std::int32_t choose(std::vector<double> logits, const Options& options) {
  for (const double logit : logits)
    if (std::isnan(logit) || logit == HUGE_VAL) return -1;
  Candidates c{{}, std::move(logits)};
  c.ids.resize(c.logits.size());
  std::iota(c.ids.begin(), c.ids.end(), 0);
  std::stable_sort(c.ids.begin(), c.ids.end(),
                   [&](std::int32_t a, std::int32_t b) { return c.logits[a] > c.logits[b]; });
  if (c.logits[c.ids[0]] == -HUGE_VAL) return -1;
  return options.temperature == 0.0 ? c.ids[0] : draw(c, options);
}

void run_sample(const KernelCall& call) {
  const std::int64_t vocab = call.in_shape(0)[1], words = (vocab + 31) / 32;
  const std::int64_t num_ids = call.get<ops::Sample>().num_ids;
  for (std::int64_t r = 0; r < call.in_shape(0)[0]; ++r) {
    const double* real = call.in<double>(1) + r * 4;
    const std::int32_t* whole = call.in<std::int32_t>(2) + r * 4;
    const auto word = [&](int i) { return static_cast<std::uint64_t>(whole[i]) & 0xffffffffU; };
    const double* row = call.in<double>(0) + r * vocab;
    std::vector<double> logits(row, row + (num_ids > 0 ? num_ids : vocab));
    const std::int32_t* seen = call.has(3) ? call.in<std::int32_t>(3) + r * words : nullptr;
    for (std::size_t i = 0; seen != nullptr && i < logits.size(); ++i)
      if (static_cast<std::uint32_t>(seen[i / 32]) >> (i % 32) & 1U)
        logits[i] = logits[i] < 0 ? logits[i] * real[3] : logits[i] / real[3];
    call.out<std::int32_t>(0)[r] = choose(std::move(logits), {real[0], real[1], real[2], real[3], whole[0],
                                                              word(1) + (word(2) << 32), word(3)});
  }
}

}  // namespace

void register_sampling(KernelTable& table) {
  add_reference(table, "sample", run_sample);
}

}  // namespace farskip::reference
