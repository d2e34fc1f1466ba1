// SPDX-License-Identifier: Apache-2.0
#include "infer/token_scores.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "backend/cpu/parallel.h"

namespace farskip {
namespace {

std::vector<std::int32_t> find_likeliest(std::span<const float> logits, std::int64_t count) {
  std::vector<std::int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto end = ids.begin() + std::min<std::ptrdiff_t>(count, static_cast<std::ptrdiff_t>(ids.size()));
  std::partial_sort(ids.begin(), end, ids.end(), [&](std::int32_t a, std::int32_t b) {
    const float x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
    return x != y ? x > y : a < b;
  });
  ids.erase(end, ids.end());
  return ids;
}

TokenScore score(std::span<const float> logits, const ScoredRow& wanted) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - largest);
  const double normalizer = largest + std::log(sum);
  const auto log_probability = [&](std::int32_t id) {
    return logits[static_cast<std::size_t>(id)] - normalizer;
  };
  TokenScore s{log_probability(wanted.token)};
  if (wanted.num_likely > 0)
    for (const std::int32_t id : find_likeliest(logits, wanted.num_likely))
      s.likeliest.emplace_back(id, log_probability(id));
  return s;
}

}  // namespace

std::vector<TokenScore> score_rows(const TensorView& logits, std::span<const ScoredRow> rows) {
  const auto vocab = static_cast<std::size_t>(logits.shape[1]);
  std::vector<TokenScore> scores(rows.size());
  cpu::parallel_for(static_cast<std::int64_t>(rows.size()), [&](std::int64_t i) {
    const ScoredRow& wanted = rows[static_cast<std::size_t>(i)];
    scores[static_cast<std::size_t>(i)] =
        score({logits.as<float>() + static_cast<std::size_t>(wanted.row) * vocab, vocab}, wanted);
  });
  return scores;
}

}  // namespace farskip
