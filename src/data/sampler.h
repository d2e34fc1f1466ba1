// SPDX-License-Identifier: Apache-2.0
#pragma once
// Which tokens make up training sample number n. A pure function of the options and n: there is nothing
// to save on a checkpoint but n, and the world size does not matter. docs/data.md states the rule.

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "data/token_file.h"

namespace farskip {

/// A pseudo-random permutation of [0, size), computed point by point without a table: a Feistel network
/// over the next even number of bits, walked until it lands inside.
class Permutation {
 public:
  /// Equal (seed, stream, size) give equal permutations.
  Permutation(std::uint64_t seed, std::uint64_t stream, std::uint64_t size);
  std::uint64_t operator()(std::uint64_t index) const;

 private:
  static constexpr int kRounds = 8;
  std::uint64_t size_;
  int half_bits_ = 0;
  std::uint64_t keys_[kRounds];
};

struct SamplerOptions {
  std::uint64_t seed = 1;
  std::int64_t sequence_length = 0;  // S
  bool shuffle = true;
  bool document_mask = false;
  /// Token that ends a document's prompt: it and what is before it in its document are no targets. A document
  /// without it has no prompt.
  std::optional<std::int32_t> prompt_end{};
  std::optional<std::int32_t> padding{};  // token that is never a target
  /// The last sample of an epoch takes the rest of the stream, filled up with targets that do not count:
  /// every token but the first is a target once. Only without shuffle.
  bool whole_stream = false;
  std::uint64_t block_size = 1024;  // P: the mixture's ratios are exact in every block of P samples
};

struct SamplerSource {
  std::shared_ptr<const TokenFile> tokens;
  double weight = 1.0;  // relative to the other sources' weights
};

/// Where a sample comes from.
struct SampleAddress {
  std::uint64_t source;
  std::uint64_t epoch;  // of this source
  std::uint64_t index;  // the sample is tokens index * S … index * S + S of the source, inclusive
  friend bool operator==(const SampleAddress&, const SampleAddress&) = default;
};

/// Target value of positions that must not count in the loss.
inline constexpr std::int32_t kIgnoredTarget = -1;

struct Sample {
  SampleAddress address;
  std::vector<std::int32_t> tokens;   // [S]
  std::vector<std::int32_t> targets;  // [S]: the next token of each position, or kIgnoredTarget
  /// [S] with document_mask, otherwise empty: the position in the sequence at which the document of each
  /// token begins (0 for the document that began before the sequence).
  std::vector<std::int32_t> document_start;
};

/// Where the prompts of a token file's documents end. Thread-safe.
class PromptEnds {
 public:
  PromptEnds(std::shared_ptr<const TokenFile> file, std::int32_t end_token)
      : file_(std::move(file)), end_token_(end_token) {}
  /// Stream offset behind the first end token of a document; where the document begins if there is none. A
  /// long document is searched once: every sample of it asks.
  std::uint64_t behind_prompt(std::uint64_t document) const;

 private:
  std::uint64_t search(std::uint64_t document) const;

  std::shared_ptr<const TokenFile> file_;
  std::int32_t end_token_;
  mutable std::mutex mutex_;
  mutable std::map<std::uint64_t, std::uint64_t> known_;  // by document, of long ones
};

/// Thread-safe. What a sample holds depends on nothing that changes.
class Sampler {
 public:
  /// Throws UsageError: no source, a weight that is not positive and finite, or so small that the source
  /// would get no sample in a block; DataError: a source with fewer than S + 1 tokens.
  Sampler(std::vector<SamplerSource> sources, const SamplerOptions& options);

  const SamplerOptions& options() const { return options_; }
  /// Samples in one pass over a source: (tokens - 1) / S, rounded up with whole_stream.
  std::uint64_t samples_per_epoch(std::size_t source) const { return samples_per_epoch_[source]; }
  /// Samples that each source has in every block of the mixture.
  const std::vector<std::uint64_t>& samples_per_block() const { return samples_per_block_; }

  /// Which tokens these are, and how sources are mixed: equal texts, equal samples with the same seed and
  /// options. Reads a part of every file (TokenFile::fingerprint).
  std::string contents_text() const;

  SampleAddress locate(std::uint64_t number) const;
  /// Throws DataError as TokenFile::read does.
  Sample sample(std::uint64_t number) const;

 private:
  void mark_documents(const TokenFile& file, std::uint64_t first, Sample& sample) const;
  void mask_prompts(std::uint64_t first, Sample& sample) const;

  std::vector<SamplerSource> sources_;
  SamplerOptions options_;
  std::vector<std::uint64_t> samples_per_epoch_;
  std::vector<std::uint64_t> samples_per_block_;
  std::vector<std::unique_ptr<PromptEnds>> prompt_ends_;  // by source, with prompt_end
  std::vector<std::uint64_t> block_bounds_;  // slot k of a block belongs to the first source with k < bound
};

/// Splits `total` in the ratio of `weights` into whole numbers by the largest remainders (the earlier
/// weight first among equal ones).
std::vector<std::uint64_t> apportion(const std::vector<double>& weights, std::uint64_t total);

}  // namespace farskip
