// SPDX-License-Identifier: Apache-2.0
#pragma once
// How likely a model finds it that one text follows another.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "farskip/program/model.h"
#include "farskip/runtime/context.h"
#include "farskip/state/states.h"

namespace farskip {

/// Token ids of a context and of what follows it. Neither is empty, and `tokens` has max_position_embeddings
/// at most.
struct Continuation {
  std::vector<std::int32_t> context, tokens;

  /// What the model has to have positions for: the last token is predicted, not read.
  std::int64_t num_positions() const { return static_cast<std::int64_t>(context.size() + tokens.size()) - 1; }
};

/// log p(tokens | context) of each, in nats: the sum over its tokens. A context that the model has too few
/// positions for loses its first tokens. `batch`: texts at a time on each rank. Texts that begin alike and
/// stand side by side, as the choices of an item do, have their beginning read once, into a cache; not where
/// routed rows travel between ranks, which read whole sequences.
///
/// Collective; the same on every rank, and to the bit the same for any number of ranks that all have every
/// expert.
std::vector<double> log_likelihoods(const Model& model, const std::shared_ptr<const States>& weights,
                                    const Context& context, std::span<const Continuation> continuations,
                                    std::int64_t batch);

}  // namespace farskip
