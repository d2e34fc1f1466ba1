// SPDX-License-Identifier: Apache-2.0
#pragma once
// Graph → passes → plan → executor.

#include <memory>

#include "farskip/passes/pipeline.h"
#include "farskip/runtime/context.h"
#include "farskip/schedule/costs.h"

namespace farskip {

/// PlanOptions say how the order of a plan is chosen.
struct PlanOptions {
  Waits waits = Waits::at_once;      // of the serial plan
  const CostTable* costs = nullptr;  // set: an overlapped plan by these costs (schedule/list_scheduler.h)
  int in_flight = 1;                 // micro-batches whose activations may be alive at once
};
/// The overlapped plan of a training step by these costs, within the memory that training allows it.
Plan make_step_plan(const Graph& graph, const WorkspaceRule& workspace, const NodeSeconds& seconds,
                    int in_flight = 1);

/// Without the passes that are for other devices than this one.
PipelineOptions pipeline_for(DeviceKind device, PipelineOptions options);

/// With costs and ranks, collective: rank 0 plans by the mean of what their tables say, and all take its
/// order. The executor speaks to the context's mesh, which has to outlive it. `align`: RankContext's.
std::unique_ptr<Executor> compile(const PassPipeline& pipeline, const Context& context,
                                  const PipelineOptions& options, const PlanOptions& plan, bool align);

}  // namespace farskip
