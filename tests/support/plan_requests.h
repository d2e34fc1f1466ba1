// SPDX-License-Identifier: Apache-2.0
#pragma once
// Requests for plans of a small model, for tests that link the plan layer.

#include "plan/plan_report.h"
#include "support/support.h"

namespace farskip::test {

inline PlanRequest make_plan_request(const MeshPosition& mesh, std::int64_t micro_batches, int zero = 1) {
  PlanRequest r;
  r.model = read_hub_config(fixtures() / "deepseek_v2");
  r.model.farskip = {FarSkipMode::full, {}};
  r.options.micro_batch = 2;
  r.options.sequence_length = 32;
  r.options.micro_batches = micro_batches;
  r.options.zero = zero;
  r.mesh = mesh;
  r.costs.rates = {20e9, 10e9};
  r.costs.links.fill({20e-6, 100e6});
  return r;
}

/// The same for a distillation: the teacher in its own wiring.
inline PlanRequest make_distill_request(const MeshPosition& mesh, const DistillConfig& config) {
  PlanRequest r = make_plan_request(mesh, 2);
  r.distill = {config, read_hub_config(fixtures() / "deepseek_v2")};
  return r;
}

}  // namespace farskip::test
