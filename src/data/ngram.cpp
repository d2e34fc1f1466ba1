// SPDX-License-Identifier: Apache-2.0
#include "data/ngram.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>

#include "farskip/base/error.h"

namespace farskip {
namespace {

/// Calls `use(previous, token)` for each neighbouring pair of a range of the stream.
void for_each_pair(const TokenFile& file, std::uint64_t first, std::uint64_t count,
                   const std::function<void(std::int32_t, std::int32_t)>& use) {
  if (count < 2 || first > file.num_tokens() || count > file.num_tokens() - first)
    throw UsageError(fmt::format("{}: tokens {} to {} of {}: a range of at least two tokens is needed",
                                 file.prefix(), first, first + count, file.num_tokens()));
  constexpr std::uint64_t kPiece = std::uint64_t{1} << 20;
  std::vector<std::int32_t> tokens;
  for (std::uint64_t done = 0; done + 1 < count; done += kPiece) {
    tokens.resize(std::min(kPiece + 1, count - done));  // pieces share the token at their border
    file.read(first + done, tokens.size(), tokens.data());
    for (std::size_t i = 0; i + 1 < tokens.size(); ++i) use(tokens[i], tokens[i + 1]);
  }
}

std::uint64_t pair_key(std::int32_t previous, std::int32_t token) {
  return static_cast<std::uint64_t>(static_cast<std::uint32_t>(previous)) << 32 |
         static_cast<std::uint32_t>(token);
}

}  // namespace

NgramBaseline::Discounts NgramBaseline::estimate_discounts(const std::vector<std::uint64_t>& counts) {
  double n[5] = {0, 0, 0, 0, 0};  // n[c]: how many things were counted c times
  for (const std::uint64_t count : counts)
    if (count >= 1 && count <= 4) ++n[count];
  Discounts discounts;
  const double y = n[1] + 2 * n[2] > 0 ? n[1] / (n[1] + 2 * n[2]) : 0;
  for (int c = 1; c <= 3; ++c) {
    const double estimate = n[c] > 0 ? c - (c + 1) * y * n[c + 1] / n[c] : 0.75;
    // Little data makes wild estimates; a discount must leave something and take something.
    discounts.by_count[c] = estimate > 0.05 && estimate <= c - 0.05 ? estimate : 0.75;
  }
  return discounts;
}

NgramBaseline::Smoothed::Smoothed(const std::vector<std::uint64_t>& counts) : probability(counts.size()) {
  const Discounts discounts = estimate_discounts(counts);
  double total = 0, taken = 0;
  for (const std::uint64_t count : counts) {
    total += static_cast<double>(count);
    taken += discounts.of(count);
  }
  for (std::size_t i = 0; i < counts.size(); ++i)
    probability[i] = (static_cast<double>(counts[i]) - discounts.of(counts[i]) +
                      taken / static_cast<double>(counts.size())) /
                     total;
}

NgramBaseline::NgramBaseline(const TokenFile& file, std::uint64_t first, std::uint64_t count,
                             std::int64_t vocabulary_size)
    : vocabulary_size_(vocabulary_size) {
  FARSKIP_CHECK(vocabulary_size > 0, "vocabulary size {}", vocabulary_size);
  std::vector<std::uint64_t> unigrams(static_cast<std::size_t>(vocabulary_size)), pairs;
  const auto check = [&](std::int32_t id) {
    if (id >= vocabulary_size)
      throw DataError(
          fmt::format("{}: token id {} in tokens {} to {} is not in [0, {}), the range of the vocabulary",
                      file.prefix(), id, first, first + count, vocabulary_size));
    return static_cast<std::size_t>(id);
  };
  pairs.reserve(count);
  for_each_pair(file, first, count, [&](std::int32_t previous, std::int32_t token) {
    if (pairs.empty()) ++unigrams[check(previous)];
    ++unigrams[check(token)];
    pairs.push_back(pair_key(previous, token));
  });
  unigram_ = Smoothed(unigrams);
  count_bigrams(std::move(pairs));
}

void NgramBaseline::count_bigrams(std::vector<std::uint64_t> pairs) {
  std::sort(pairs.begin(), pairs.end());
  const auto vocabulary = static_cast<std::size_t>(vocabulary_size_);
  std::vector<std::uint64_t> predecessors(vocabulary), counts;
  row_begin_.assign(vocabulary + 1, 0);
  for (std::size_t i = 0; i < pairs.size();) {
    std::size_t end = i;
    while (end < pairs.size() && pairs[end] == pairs[i]) ++end;
    const auto token = static_cast<std::int32_t>(pairs[i] & 0xffffffffU);
    successors_.push_back(token);
    counts.push_back(end - i);
    bigram_counts_.push_back(static_cast<std::uint32_t>(end - i));
    ++predecessors[token];
    ++row_begin_[(pairs[i] >> 32) + 1];
    i = end;
  }
  for (std::size_t v = 0; v < vocabulary; ++v) row_begin_[v + 1] += row_begin_[v];
  discounts_ = estimate_discounts(counts);
  continuation_ = Smoothed(predecessors);
  context_counts_.assign(vocabulary, 0);
  back_off_.assign(vocabulary, 1);
  for (std::size_t v = 0; v < vocabulary; ++v) {
    double total = 0, taken = 0;
    for (std::uint64_t i = row_begin_[v]; i < row_begin_[v + 1]; ++i) {
      total += static_cast<double>(counts[i]);
      taken += discounts_.of(counts[i]);
    }
    context_counts_[v] = total;
    if (total > 0) back_off_[v] = taken / total;
  }
}

double NgramBaseline::unigram_probability(std::int32_t token) const {
  return unigram_.probability.at(static_cast<std::size_t>(token));
}

double NgramBaseline::bigram_probability(std::int32_t previous, std::int32_t token) const {
  const double lower = back_off_.at(static_cast<std::size_t>(previous)) *
                       continuation_.probability.at(static_cast<std::size_t>(token));
  const auto row =
      std::span(successors_).subspan(row_begin_[previous], row_begin_[previous + 1] - row_begin_[previous]);
  const auto found = std::lower_bound(row.begin(), row.end(), token);
  if (found == row.end() || *found != token) return lower;
  const std::uint32_t count =
      bigram_counts_[row_begin_[previous] + static_cast<std::size_t>(found - row.begin())];
  return (count - discounts_.of(count)) / context_counts_[previous] + lower;
}

NgramLoss NgramBaseline::evaluate(const TokenFile& file, std::uint64_t first, std::uint64_t count) const {
  NgramLoss loss;
  for_each_pair(file, first, count, [&](std::int32_t previous, std::int32_t token) {
    if (std::max(previous, token) >= vocabulary_size_)
      throw DataError(fmt::format("{}: token id {} is not in [0, {}), the vocabulary of the baseline",
                                  file.prefix(), std::max(previous, token), vocabulary_size_));
    loss.unigram -= std::log(unigram_probability(token));
    loss.bigram -= std::log(bigram_probability(previous, token));
    ++loss.num_predicted;
  });
  loss.unigram /= static_cast<double>(loss.num_predicted);
  loss.bigram /= static_cast<double>(loss.num_predicted);
  return loss;
}

}  // namespace farskip
