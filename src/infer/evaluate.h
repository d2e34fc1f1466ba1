// SPDX-License-Identifier: Apache-2.0
#pragma once
// Losses of a model on held-out text.

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "data/sampler.h"
#include "farskip/engine/engine.h"

namespace farskip {

/// Samples [first, first + count) as one batch.
Batch read_batch(const Sampler& sampler, std::uint64_t first, std::int64_t count);
std::int64_t count_targets(const Batch& batch);

struct Evaluation {
  double loss = 0;      // cross-entropy, mean over counted tokens, nats; NaN without any
  double accuracy = 0;  // share of counted tokens with the target on top
  std::int64_t tokens = 0;
  std::map<std::string, double> means{};  // of BatchLoss::sums, over counted tokens
};
/// One pass over a source in order, at most `max_sequences` (0: all of them), `batch` at a time on each rank
/// of the engine. Collective; the same on every rank.
Evaluation evaluate(InferenceEngine& engine, const Sampler& sampler, std::int64_t batch,
                    std::int64_t max_sequences);
/// Over the tokens of several sources, each read once.
Evaluation evaluate_all(InferenceEngine& engine, const std::vector<std::unique_ptr<Sampler>>& sources,
                        std::int64_t batch);

}  // namespace farskip
