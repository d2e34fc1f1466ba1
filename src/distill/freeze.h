// SPDX-License-Identifier: Apache-2.0
#pragma once
// Which parameters distillation leaves as they are.

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/config/run_config.h"
#include "farskip/model/parameters.h"

namespace farskip {

/// Names of the parameters that `rules` (distill.freeze) cover: groups, or patterns with * and ? of names as
/// the hub's files have them. UsageError for a rule that covers nothing, for a pattern that covers only a
/// part of what is one tensor here (one expert of a layer, the gate without the up projection), and when
/// nothing would be left to train.
std::set<std::string> frozen_parameters(const std::vector<std::string>& rules, const ModelConfig& config);

/// Those of a run; none where it distils nothing.
std::set<std::string> frozen_in_run(const RunConfig& config, const ModelConfig& model);

/// * stands for any characters, ? for one.
bool matches_pattern(std::string_view name, std::string_view pattern);

}  // namespace farskip
