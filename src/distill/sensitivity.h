// SPDX-License-Identifier: Apache-2.0
#pragma once
// Sensitivity says what the rewiring of each layer costs before any training: which layers to leave as they
// are.

#include <memory>
#include <vector>

#include "farskip/program/model.h"
#include "farskip/runtime/context.h"
#include "farskip/state/states.h"
#include "fold/fold_text.h"

namespace farskip {

/// Of a rewired model beside the model itself, means over the tokens of a text.
struct RewiringCost {
  std::int64_t layer = -1;  // that alone is rewired; -1: all chosen layers are
  double loss = 0;          // cross-entropy in nats
  double kl = 0;            // KL(model, rewired model) in nats
  double agreement = 0;     // share of tokens for which both have the same most likely next token
};

struct Sensitivity {
  double model_loss = 0;
  std::vector<RewiringCost> layers;  // one for each layer that the wiring changes, in order
  RewiringCost all;
};

/// Rewires one layer after the other, each alone, and measures on all sequences of the text. `weights`: of
/// the model, constants; both models read them.
Sensitivity measure_sensitivity(const Model& model, const FarSkipConfig& wiring,
                                const std::shared_ptr<const States>& weights, const FoldText& text,
                                const Context& context);

}  // namespace farskip
