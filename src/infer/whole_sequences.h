// SPDX-License-Identifier: Apache-2.0
#pragma once
// log_likelihoods() of whole sequences, on any layout.

#include "farskip/engine/engine.h"
#include "infer/log_likelihood.h"

namespace farskip {

/// `batch`: sequences at a time on each rank.
std::vector<double> whole_sequence_likelihoods(InferenceEngine& engine,
                                               std::span<const Continuation> continuations,
                                               std::int64_t batch);

}  // namespace farskip
