// SPDX-License-Identifier: Apache-2.0
#pragma once
// distill.fold: the weights that a distillation begins with.

#include <set>

#include "farskip/config/run_config.h"
#include "farskip/runtime/context.h"
#include "farskip/state/states.h"

namespace farskip {

/// Changes the teacher's weights in `states` to those that fit the student's wiring. Collective. UsageError
/// where the student does not start from the teacher, and where a weight that `frozen` names would change.
void fold_start(const RunConfig& config, const ModelConfig& student, const std::set<std::string>& frozen,
                const Context& context, States& states);

}  // namespace farskip
