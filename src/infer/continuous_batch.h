// SPDX-License-Identifier: Apache-2.0
#pragma once
// Many texts continued at once: whoever ends makes room for the next at once (continuous batching: Yu et al.,
// "Orca", OSDI 2022), and the beginnings of new texts are read beside the next tokens of others.

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "data/tokenizer.h"
#include "engine/cached_engine.h"
#include "infer/block_pool.h"
#include "infer/generate.h"

namespace farskip {

/// What ends texts, and how much is read at once.
struct ContinuousBatchOptions {
  std::vector<std::int64_t> end_tokens;
  std::optional<Tokenizer> tokenizer{};  // none: tokens have no text, so there are no stop strings
  std::int64_t max_run_tokens = 512;     // of a run; long prompts are read in parts
  /// Prompts are read in runs of their own (CachedTokens::fresh), which on a GPU is faster. On a CPU a text
  /// would not have the same bits in any company.
  bool fresh_runs = false;
};

/// UsageError where the prompt is empty or leaves no room for a token within the model's longest position, or
/// where the whole text may not fit into the cache.
void check_request(const GenerationRequest& request, const ModelConfig& model, const CacheSize& cache);

/// A text's tokens depend on its request alone, not on what else is continued (where the engine's bits do
/// not: engine/cached_engine.h). Where the cache is full, the text that came last gives its blocks back and
/// is read again later. Requests may come and go between any two steps.
class ContinuousBatch {
 public:
  ContinuousBatch(CachedEngine& engine, ContinuousBatchOptions options);
  ~ContinuousBatch();
  ContinuousBatch(const ContinuousBatch&) = delete;
  ContinuousBatch& operator=(const ContinuousBatch&) = delete;

  /// Checks it (check_request), and returns the number of the request: 0, 1, ….
  std::int64_t submit(GenerationRequest request);
  /// Ends a text at once: nothing more comes of it. One that has ended, or never was, is passed over.
  void cancel(std::int64_t request);

  /// Requests that have not ended, of them those that are continued, and blocks of the cache that these have.
  std::int64_t num_open() const { return static_cast<std::int64_t>(waiting_.size() + active_.size()); }
  std::int64_t num_active() const { return static_cast<std::int64_t>(active_.size()); }
  std::int64_t num_used_blocks() const { return engine_.size().num_blocks - pool_.num_free(); }

  struct Ended {
    std::int64_t request;
    Generated text;
  };
  /// One run of the model. Returns those that have ended with it.
  std::vector<Ended> step();

 private:
  struct Sequence;
  using SequencePointer = std::unique_ptr<Sequence>;
  struct Run;

  /// That so many tokens of a text take.
  std::int64_t num_blocks(std::int64_t tokens) const;
  bool begins(const Sequence& sequence) const;
  void admit();
  bool make_room(Sequence& sequence, std::int64_t tokens);
  void release(Sequence& sequence);
  bool add_tokens(Sequence& sequence, Run& run);
  std::optional<Ended> take(Sequence& sequence, std::int32_t id);
  bool is_end_token(std::int32_t id) const;
  std::optional<GenerationEnd> end_of(Sequence& sequence, std::int32_t id);

  CachedEngine& engine_;
  ContinuousBatchOptions options_;
  std::int64_t max_scored_rows_;  // of a run: their logits are kept
  BlockPool pool_;
  std::vector<std::int64_t> free_slots_;
  std::deque<SequencePointer> waiting_;  // in the order in which they will be admitted
  std::vector<SequencePointer> active_;  // in the order in which they were
  std::int64_t num_submitted_ = 0;
};

}  // namespace farskip
