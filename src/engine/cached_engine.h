// SPDX-License-Identifier: Apache-2.0
#pragma once
// A model beside a cache of what it has read: each token is read once.

#include <memory>
#include <span>
#include <vector>

#include "farskip/engine/program_runner.h"

namespace farskip {

/// How much a cache holds: num_blocks · block_tokens tokens, of some sequences at once.
struct CacheSize {
  std::int64_t num_blocks = 1, block_tokens = 16;
  std::int64_t max_sequences = 1;
  std::int64_t max_tokens = 1;  // of a sequence
  /// Of a sequence.
  std::int64_t max_blocks() const { return (max_tokens + block_tokens - 1) / block_tokens; }
};

/// How the next token of a text is chosen (ops::sample).
struct SamplingOptions {
  double temperature = 0.0;         // 0: the most likely token
  std::int64_t top_k = 0;           // among so many; 0: all
  double top_p = 1.0, min_p = 0.0;  // among the most likely ones
  double repetition_penalty = 1.0;  // of tokens that stand in the text
  std::int64_t seed = 1;
};
/// One choice: the `counter`-th of its text. `seen`: bits of the ids in the text; read where there is a
/// penalty.
struct Draw {
  SamplingOptions options;
  std::int64_t counter = 0;
  std::span<const std::uint32_t> seen{};
};

/// Tokens that are read in one run, of any sequences. Those of a sequence come in order, after all before
/// them have been read.
struct CachedTokens {
  std::vector<std::int32_t> tokens, sequences, positions;
  std::vector<std::int32_t> output_rows{};  // of these, whose logits are wanted
  /// All texts begin in this run and are read to where `tokens` ends, so attention need not read the cache:
  /// the kernels of training serve, whose last bits differ.
  bool fresh = false;

  std::int64_t count() const { return static_cast<std::int64_t>(tokens.size()); }
  void add(std::int32_t token, std::int64_t sequence, std::int64_t position, bool output);
};
/// The largest number of tokens up to `count` that a run reads without padding.
std::int64_t round_down_tokens(std::int64_t count);
/// The next number of tokens, from `count` on, that a run reads without padding.
std::int64_t round_up_tokens(std::int64_t count);
/// The same in at most `count` parts of whole texts, about equally long; those of a text lie side by side.
std::vector<CachedTokens> divide_texts(const CachedTokens& tokens, int count);

/// Plans are made on first use of a number of tokens, rounded up; of many kinds of runs the latest are kept.
/// On the CPU what is computed of a sequence has the same bits whatever else is read in a run, and however
/// its own tokens are dealt out to runs.
class CachedEngine {
 public:
  /// `weights`: as for InferenceEngine. The cache is allocated on their device.
  /// `num_ids`: ids below it are chosen (a vocabulary is often padded); 0: all.
  /// `plan`: how collectives are ordered, and in how many parts a run is read (`in_flight`), so that those of
  /// one run under the computation of another; `align`: ranks meet before each, for measuring.
  CachedEngine(Model model, std::shared_ptr<const States> weights, const Context& context,
               const CacheSize& size, std::int64_t num_ids = 0,
               const PlanOptions& plan = {.waits = Waits::late}, bool align = false);
  CachedEngine(const CachedEngine&) = delete;
  CachedEngine& operator=(const CachedEngine&) = delete;
  /// Lets followers go, unless an error passes through, which ends the job.
  ~CachedEngine();

  /// Where ranks share every matrix, one of them decides what is read: from now on each run of the first rank
  /// of the axis tensor runs on the others, too, which follow() until its engine is gone. Followers need an
  /// engine of the same size. By the rank's own thread.
  void lead();
  void follow();
  bool leads() const { return leads_; }
  /// The leader, now and then while there is nothing to read: both sides hear that the other is there.
  void meet_followers();

  const ModelConfig& config() const { return model_.config; }
  const CacheSize& size() const { return size_; }
  /// The caches. What no token was written to is unspecified, and not read.
  const States& cache() const { return *cache_; }

  /// Where the tokens of a sequence stand from now on: block i has positions from i · block_tokens on.
  void set_blocks(std::int64_t sequence, std::span<const std::int32_t> blocks);
  /// Reads the tokens and chooses one to follow each of the output rows; -1 where a logit is not finite.
  std::vector<std::int32_t> next(const CachedTokens& tokens, std::span<const Draw> draws);
  /// Reads the tokens; of each output row the loss of the token that follows it, in nats. In host memory,
  /// valid until the next run. Ranks that share every matrix call it together.
  std::span<const float> token_losses(const CachedTokens& tokens, std::span<const std::int32_t> targets);
  void observe(ProgramRunner::Observer observer) { runner_.observe(std::move(observer)); }
  /// Of the output rows of the last run: [output_rows, V] f32 in host memory, valid until the next one.
  TensorView logits();

 private:
  const Communicator& followers() const { return context().mesh.tensor(); }
  void hear_of_run(std::span<std::int64_t> header);
  void tell_followers(const CachedTokens& tokens, bool penalised);
  struct PaddedTokens;
  PaddedTokens pad(const CachedTokens& tokens, CachedRunShape asked) const;
  Stage& prepare(const std::vector<CachedTokens>& parts, const CachedRunShape& asked);
  const Context& context() const { return runner_.context(); }
  void copy_changed_blocks();
  std::int32_t cache_row(std::int32_t sequence, std::int32_t position) const;

  Model model_;
  DType compute_;
  CacheSize size_;
  std::shared_ptr<const States> cache_;
  std::vector<std::int32_t> table_;  // [max_sequences, max_blocks]
  DeviceBuffer table_on_device_;     // the same, less what has changed in these sequences
  std::int64_t first_changed_ = 0, end_changed_;
  std::int64_t num_ids_;
  PlanOptions plan_;
  ProgramRunner runner_;
  const Stage* last_ = nullptr;          // that has run
  std::vector<std::int64_t> last_rows_;  // the output rows of its parts
  HostTensor logits_;                    // of several parts
  bool leads_ = false;
};

}  // namespace farskip
