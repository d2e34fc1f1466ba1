// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "config/fields.h"
#include "farskip/config/run_config.h"

namespace farskip {

/// The section `distill` of a configuration. `required`: a missing section or teacher is a mistake.
void distill_fields(Fields& f, DistillConfig& config, bool required);

}  // namespace farskip
