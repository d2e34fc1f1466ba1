// SPDX-License-Identifier: Apache-2.0
// Costs measured without the other ranks, against the ops that a plan asks them about.
#include "measure/measure_without_peers.h"

#include "support/catch.h"
#include "support/plan_requests.h"

namespace farskip {
namespace {

const Logger kQuiet(LogLevel::off);

TEST_CASE("what is measured on a mirror covers every op of both wirings of the whole model") {
  const int local_ranks = GENERATE(1, 3);  // all but the first only keep cores at work
  PlanRequest request = test::make_plan_request({8, 0, 4}, 3);
  const MirrorMeasurement measurement = choose_measurement(request, 1e12, 30, local_ranks);
  CHECK(measurement.local_ranks == local_ranks);
  CHECK(measurement.request.model.num_layers == 3);
  CHECK(measurement.request.options.micro_batches == 2);
  CHECK(measurement.request.options.micro_batch == 2);
  CHECK(choose_measurement(request, 1.0, 30).request.options.micro_batch == 1);
  request.costs.table = std::make_shared<const CostTable>(measure_without_peers(measurement, kQuiet));
  const PlanReport report = plan_step(request, kQuiet);
  CHECK(report.standard.compute_seconds > 0);
  CHECK(report.farskip.compute_seconds > 0);
}

TEST_CASE("what is measured on a mirror covers every op of a distillation") {
  DistillConfig config;
  config.hidden_loss.weight = config.router_agreement = 0.1;
  config.hidden_layers = {3, 1};
  config.teacher_layers = {2, 3};
  config.freeze = {"model.layers.3.*", "head"};
  PlanRequest request = test::make_distill_request({4, 0, 2}, config);
  const MirrorMeasurement measurement = choose_measurement(request, 1e12, 30);
  CHECK(measurement.request.distill->teacher.num_layers == 3);
  CHECK(measurement.request.distill->config.freeze == std::vector<std::string>{"head"});
  request.costs.table = std::make_shared<const CostTable>(measure_without_peers(measurement, kQuiet));
  const PlanReport report = plan_step(request, kQuiet);
  CHECK(report.standard.compute_seconds > 0);
  CHECK(report.farskip.compute_seconds > 0);
}

}  // namespace
}  // namespace farskip
