// SPDX-License-Identifier: Apache-2.0
#pragma once
// A plan as people and programs read it.

#include <nlohmann/json_fwd.hpp>

#include "plan/plan_report.h"

namespace farskip {

struct WiringPair {
  LayerGraph standard, farskip;
};
/// Both on stdout, one line a block.
void print_wirings(const WiringPair& wirings);

/// Whose rates it is by, if it is a named card's, on stdout.
void print_card(const PlanRequest& request);
/// On stdout: totals first; `every_collective`: the full list too.
void print_plan(const PlanRequest& request, const PlanReport& report, bool every_collective);
/// `wirings`: added as "graph" unless it is nullptr.
nlohmann::ordered_json plan_json(const PlanRequest& request, const PlanReport& report,
                                 const WiringPair* wirings);

}  // namespace farskip
