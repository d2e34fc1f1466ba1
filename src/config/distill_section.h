// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <optional>

#include "farskip/config/reader.h"
#include "farskip/config/run_config.h"

namespace farskip {

/// The weight of one term.
double& weight_of(DistillWeights& weights, DistillTerm term);

/// Reads the section `distill` of a configuration; nothing where there is none. `required`: a missing section
/// or teacher is a mistake.
std::optional<DistillConfig> read_distill_section(Reader& root, bool required);

}  // namespace farskip
