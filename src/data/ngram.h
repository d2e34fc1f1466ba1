// SPDX-License-Identifier: Apache-2.0
#pragma once
// Unigram and bigram language models: what a trained network must beat. All probabilities are over the
// whole vocabulary and positive.

#include <cstdint>
#include <vector>

#include "data/token_file.h"

namespace farskip {

/// Mean negative log-likelihood per predicted token, nats, over the tokens [first + 1, first + count) of a
/// range, each predicted from the one before it (which the unigram does not look at).
struct NgramLoss {
  double unigram = 0, bigram = 0;
  std::uint64_t num_predicted = 0;
};

class NgramBaseline {
 public:
  /// Counts the tokens [first, first + count) of the stream. Throws DataError for an id outside
  /// [0, vocabulary_size) and UsageError for fewer than two tokens.
  ///
  /// Bigram: interpolated Kneser-Ney with three discounts estimated from the counts of counts (Chen and
  /// Goodman, "An empirical study of smoothing techniques for language modeling", 1998, section 4.1);
  /// the lower order, over the number of different predecessors, is discounted likewise and backs off to
  /// the uniform distribution. Unigram: discounted counts that back off to the uniform distribution.
  NgramBaseline(const TokenFile& file, std::uint64_t first, std::uint64_t count,
                std::int64_t vocabulary_size);

  double unigram_probability(std::int32_t token) const;
  double bigram_probability(std::int32_t previous, std::int32_t token) const;

  NgramLoss evaluate(const TokenFile& file, std::uint64_t first, std::uint64_t count) const;

 private:
  struct Discounts {
    double by_count[4] = {0, 0, 0, 0};  // of counts 1, 2 and 3 or more; by_count[0] is unused
    double of(std::uint64_t count) const { return by_count[count < 3 ? count : 3]; }
  };
  /// One distribution over the vocabulary: discounted counts, the rest spread evenly.
  struct Smoothed {
    std::vector<double> probability;
    explicit Smoothed(const std::vector<std::uint64_t>& counts);
    Smoothed() = default;
  };
  static Discounts estimate_discounts(const std::vector<std::uint64_t>& counts);
  void count_bigrams(std::vector<std::uint64_t> pairs);

  std::int64_t vocabulary_size_;
  Smoothed unigram_, continuation_;
  // Bigrams sorted by (previous, token); those after token v are [row_begin_[v], row_begin_[v + 1]).
  std::vector<std::uint64_t> row_begin_;
  std::vector<std::int32_t> successors_;
  std::vector<std::uint32_t> bigram_counts_;
  std::vector<double> context_counts_;  // by previous token: how often it was followed by anything
  std::vector<double> back_off_;        // by previous token: mass given to the lower order
  Discounts discounts_;
};

}  // namespace farskip
