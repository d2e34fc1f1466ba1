// SPDX-License-Identifier: Apache-2.0
#include "plan/inference_plan.h"

#include "farskip/program/inference_program.h"
#include "schedule/hideable.h"

namespace farskip {

double expected_row_share(const MeshPosition& mesh, std::int64_t rows, std::int64_t max_rows) {
  // Experts that ranks share beside all tokens: each rank has its part of all rows.
  if (mesh.tensor_size > 1) return 1.0 / mesh.expert_size;
  const std::int64_t bound = mesh.exchange_size() * max_rows;
  return bound > 0 ? static_cast<double>(rows) / static_cast<double>(bound) : 1.0;
}

namespace {

/// Each part of a run has a shape; parts are about equally large.
std::vector<CachedRunShape> shapes_of(const InferenceCase& run) {
  const bool decodes = run.kind == InferenceRun::decode;
  std::vector<CachedRunShape> shapes;
  for (std::int64_t left = run.texts, parts = run.parts; parts > 0; --parts) {
    CachedRunShape shape;
    CacheShape& cache = shape.cache;
    cache.outputs = (left + parts - 1) / parts;
    cache.tokens = decodes ? cache.outputs : cache.outputs * run.length;
    cache.sequences = run.texts;
    cache.max_blocks = (run.length + cache.block_tokens) / cache.block_tokens;
    cache.num_blocks = run.texts * cache.max_blocks;
    if (!decodes) cache.fresh_length = run.length;
    left -= cache.outputs;
    shapes.push_back(shape);
  }
  return shapes;
}

}  // namespace

PlannedInference plan_inference(const InferencePlanRequest& request, const InferenceCase& run,
                                const Logger& logger) {
  const Model model = wire_model(request.model);
  const std::vector<CachedRunShape> shapes = shapes_of(run);
  const DeviceKind device = request.dtype == DType::f32 ? DeviceKind::cpu : DeviceKind::cuda;
  const Graph graph = run_pipeline(cached_pipeline(model, shapes, request.dtype, request.mesh),
                                   pipeline_for(device, {}), logger);
  std::int64_t tokens = 0;
  for (const CachedRunShape& shape : shapes) tokens += shape.cache.tokens;
  const std::int64_t cache_rows = shapes[0].cache.num_blocks * shapes[0].cache.block_tokens;
  // A batch of its own on each rank; a worst routing has room.
  const std::int64_t rows = tokens * request.model.moe.top_k;
  const NodeSeconds seconds = estimate_by_rates(graph, request.costs.rates, request.costs.links,
                                                expected_row_share(request.mesh, rows, rows));
  const WorkspaceRule workspace = [](const OpDef&, const OpTypes&) { return std::size_t{0}; };
  const Plan scheduled = make_step_plan(graph, workspace, seconds, run.parts);
  const Timeline timeline = simulate(graph, scheduled, seconds);
  const Hideable bound = find_hideable(graph, seconds);
  PlannedInference planned{
      .blocking_seconds =
          simulate(graph, make_serial_plan(graph, workspace, Waits::at_once), seconds).makespan,
      .scheduled_seconds = timeline.makespan,
      .transport_seconds = bound.transport_seconds,
      .hideable_seconds = bound.seconds,
      .exposed_seconds = std::min(timeline.exposed_seconds, bound.transport_seconds),
      .tokens = tokens * request.mesh.size(MeshAxis::batch),
      .arena_bytes = scheduled.arena_bytes};
  const auto weights =
      constant_states(local_parameters(list_parameters(request.model), request.mesh, false), request.dtype);
  planned.weight_bytes = total_bytes(weights, Role::constant);
  planned.cache_bytes = total_bytes(
      cache_states(request.model, cache_rows, request.dtype, request.mesh.tensor_size), Role::cache);
  return planned;
}

}  // namespace farskip
