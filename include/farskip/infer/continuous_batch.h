// SPDX-License-Identifier: Apache-2.0
#pragma once
// Many texts continued at once: whoever ends makes room for the next at once (continuous batching: Yu et al.,
// "Orca", OSDI 2022), and the beginnings of new texts are read beside the next tokens of others.

#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "farskip/engine/cached_engine.h"
#include "farskip/infer/block_pool.h"
#include "farskip/infer/generate.h"

namespace farskip {

/// What ends texts, and how much is read at once.
struct ContinuousBatchOptions {
  std::vector<std::int64_t> end_tokens;
  std::int64_t max_run_tokens = 512;  // of a run; long prompts are read in parts
  /// Prompts are read in runs of their own (CachedTokens::fresh), which on a GPU is faster. On a CPU a text
  /// would not have the same bits in any company.
  bool fresh_runs = false;
};

/// A text's tokens depend on its request alone, not on what else is continued (where the engine's bits do
/// not: engine/cached_engine.h). Where the cache is full, the text that came last gives its blocks back and
/// is read again later.
class ContinuousBatch {
 public:
  ContinuousBatch(CachedEngine& engine, ContinuousBatchOptions options);

  /// UsageError where the prompt is empty or leaves no room for a token within the model's longest position,
  /// or where the whole text may not fit into the cache. Returns the number of the request: 0, 1, ….
  std::int64_t submit(GenerationRequest request);
  /// Requests that have not ended.
  std::int64_t num_open() const { return static_cast<std::int64_t>(waiting_.size() + active_.size()); }

  struct Ended {
    std::int64_t request;
    Generated text;
  };
  /// One run of the model. Returns those that have ended with it.
  std::vector<Ended> step();

 private:
  struct Sequence {
    std::int64_t number = 0;
    GenerationRequest request;
    std::vector<std::int32_t> tokens;  // prompt, then what was generated
    std::int64_t num_read = 0;         // of them, in the cache
    std::int64_t slot = -1;
    std::vector<std::int32_t> blocks{};
    std::vector<std::uint32_t> seen{};  // bits of ids in the text, where a penalty asks for them

    std::int64_t num_generated() const {
      return static_cast<std::int64_t>(tokens.size() - request.prompt.size());
    }
    std::int64_t num_unread() const { return static_cast<std::int64_t>(tokens.size()) - num_read; }
  };
  using SequencePointer = std::unique_ptr<Sequence>;

  /// That so many tokens of a text take.
  std::int64_t num_blocks(std::int64_t tokens) const;
  bool begins(const Sequence& sequence) const;
  void admit();
  bool make_room(Sequence& sequence, std::int64_t tokens);
  void release(Sequence& sequence);
  bool is_end_token(std::int32_t id) const;
  std::optional<GenerationEnd> end_of(Sequence& sequence, std::int32_t id);

  CachedEngine& engine_;
  ContinuousBatchOptions options_;
  BlockPool pool_;
  std::vector<std::int64_t> free_slots_;
  std::deque<SequencePointer> waiting_;  // in the order in which they will be admitted
  std::vector<SequencePointer> active_;  // in the order in which they were
  std::int64_t num_submitted_ = 0;
};

}  // namespace farskip
