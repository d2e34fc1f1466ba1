// SPDX-License-Identifier: Apache-2.0
#pragma once
// TextObjective is what a run without a teacher is about.

#include "distill/run_objective.h"

namespace farskip {

/// Cross-entropy on the data, from random weights or those of a model folder.
class TextObjective final : public RunObjective {
 public:
  /// All three live longer.
  TextObjective(const RunConfig& config, const ModelConfig& model, const Context& context)
      : config_(config), model_(model), context_(context) {}

  void fill_weights(States& states) const override;

 private:
  const RunConfig& config_;
  const ModelConfig& model_;
  const Context& context_;
};

}  // namespace farskip
