// SPDX-License-Identifier: Apache-2.0
#pragma once
// How fast a model reads texts and continues them, on random weights and tokens.

#include <memory>

#include "engine/cached_engine.h"

namespace farskip {

/// Bytes a second that a device reads and writes in a large copy: twice the bytes, median of `rounds`.
double measure_copy_rate(Device& device, int rounds);

struct InferenceTimes {
  double seconds = 0, seconds_p99 = 0;  // of a run: from tokens in the host's memory to the next ones
  std::int64_t tokens = 0;              // of a run
  double bytes_read =
      0;  // of decoding, at least: weights that the run needs, and keys and values of its texts
};

/// Weights that a model of this seed begins with, in the type of `compute`.
std::shared_ptr<const States> random_constants(const Model& model, const Context& context, DType compute,
                                               std::uint64_t seed);

class InferenceBench {
 public:
  /// A cache for `sequences` texts of `length` tokens, and one more each.
  InferenceBench(const Model& model, const Context& context, std::shared_ptr<const States> weights,
                 std::int64_t sequences, std::int64_t length,
                 const PlanOptions& plan = {.waits = Waits::late}, bool align = false);

  /// The next token of `batch` texts of `length` tokens.
  InferenceTimes decode(std::int64_t batch, std::int64_t length, int repetitions);
  /// The first token after `requests` texts of `length` tokens, all read at once.
  InferenceTimes prefill(std::int64_t requests, std::int64_t length, int repetitions);

  /// Random tokens of such runs.
  CachedTokens decode_tokens(std::int64_t batch, std::int64_t length) const;
  CachedTokens prefill_tokens(std::int64_t requests, std::int64_t length) const;
  CachedEngine& engine() { return engine_; }

 private:
  InferenceTimes measure(const CachedTokens& run, int repetitions);
  std::int32_t random_token(std::int64_t number) const;
  double decode_bytes(std::int64_t batch, std::int64_t length) const;

  Model model_;
  Context context_;
  std::shared_ptr<const States> weights_;
  CachedEngine engine_;
};

}  // namespace farskip
