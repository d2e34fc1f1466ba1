// SPDX-License-Identifier: Apache-2.0
#include "run/text_objective.h"

#include "checkpoint/training_checkpoint.h"
#include "farskip/state/weights.h"

namespace farskip {

void TextObjective::fill_weights(States& states) const {
  if (config_.init_from.empty())
    return initialise_weights(states, static_cast<std::uint64_t>(config_.seed), model_.initializer_range);
  verify_model_folder(config_.init_from, context_.world());
  load_weights(states, list_parameters(model_), SafetensorsFolder(config_.init_from));
}

}  // namespace farskip
