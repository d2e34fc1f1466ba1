// SPDX-License-Identifier: Apache-2.0
#pragma once
// Reading texts and continuing them, predicted without the ranks that it is planned for.

#include "plan/plan_report.h"

namespace farskip {

enum class InferenceRun : std::uint8_t { prefill, decode };
/// What is run: `texts` of `length` tokens each, in parts of whole texts whose layers may interleave.
struct InferenceCase {
  InferenceRun kind = InferenceRun::prefill;
  std::int64_t texts = 1, length = 1;
  int parts = 1;
};

struct InferencePlanRequest {
  ModelConfig model;  // model.farskip: the wiring
  MeshPosition mesh;  // the rank that is planned for
  DType dtype = DType::f32;
  PlanCosts costs;  // without a table
};

/// Seconds of one run, and memory of a rank: weights, the caches of the texts, room for the overlapped plan.
struct PlannedInference {
  double blocking_seconds = 0, scheduled_seconds = 0;
  double transport_seconds = 0;  // C
  double hideable_seconds = 0;   // H: maximum flow, an upper bound
  double exposed_seconds = 0;    // of the overlapped plan
  std::int64_t tokens = 0;       // of all ranks
  std::size_t weight_bytes = 0, cache_bytes = 0, arena_bytes = 0;

  std::size_t total_bytes() const { return weight_bytes + cache_bytes + arena_bytes; }
  double hidden_fraction() const {
    return transport_seconds > 0 ? 1 - exposed_seconds / transport_seconds : 0;
  }
};
/// The first token of all texts after they are read at once, or their next one.
PlannedInference plan_inference(const InferencePlanRequest& request, const InferenceCase& run,
                                const Logger& logger);

/// Of the bound on routed rows, the part that a rank has where all experts are equally busy; `rows`: that one
/// rank routes, `max_rows`: that it may send to one other.
double expected_row_share(const MeshPosition& mesh, std::int64_t rows, std::int64_t max_rows);

}  // namespace farskip
