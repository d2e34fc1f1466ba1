// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "farskip/schedule/plan.h"

namespace farskip::test {

/// Runs a plan on memory that only remembers which value lies where, one cell for each 256 bytes: knows
/// nothing of how plans are made or verified. Returns what goes wrong first, "" if nothing does.
std::string simulate_plan(const Graph& graph, const Plan& plan);

/// "0 +1 2 -1": nodes run, started, waited for.
std::string order_of(const Plan& plan);

}  // namespace farskip::test
