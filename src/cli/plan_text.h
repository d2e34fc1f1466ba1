// SPDX-License-Identifier: Apache-2.0
#pragma once
// A plan as people and programs read it.

#include "cli/record.h"
#include "plan/plan_report.h"

namespace farskip {

struct WiringPair {
  LayerGraph standard, farskip;
};
/// Both on stdout, one line a block.
void print_wirings(const WiringPair& wirings);

/// Whose rates it is by, if it is a named card's, on stdout.
void print_card(const PlanRequest& request);
/// `wirings`: added as "graph" unless it is nullptr.
Record plan_record(const PlanRequest& request, const PlanReport& report, const WiringPair* wirings);
/// Such a record on stdout, and of its request and report what the record leaves out: totals first;
/// `every_collective`: the full list too.
void print_plan(const PlanRequest& request, const PlanReport& report, const Record& record,
                bool every_collective);

}  // namespace farskip
