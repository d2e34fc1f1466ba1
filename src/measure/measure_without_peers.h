// SPDX-License-Identifier: Apache-2.0
#pragma once
// Costs of the kernels of one rank of many, measured without the others, for plans of ranks that are not
// there.

#include <vector>

#include "plan/plan_report.h"

namespace farskip {

/// How the kernels of a request are measured: on a model of its distinct layers (a dense one if there are
/// any, two with experts) at its place in the mesh, in some steps; with one sequence at a time if it took too
/// long otherwise.
struct MirrorMeasurement {
  PlanRequest request;
  std::vector<int> expert_chunks{1};  // each is measured
  int steps = 3;
  int local_ranks = 1;  // that share this machine's cores; all are kept at work while one is measured
};
MirrorMeasurement choose_measurement(const PlanRequest& request, double flops_per_second, double most_seconds,
                                     int local_ranks = 1);
/// Measures kernels on this machine, the other ranks mirrored (comm/mirror.h). The collectives of
/// the table are copies within this process: plan with links.
CostTable measure_without_peers(const MirrorMeasurement& measurement, const Logger& logger);

}  // namespace farskip
