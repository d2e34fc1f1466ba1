// SPDX-License-Identifier: Apache-2.0
#include "farskip/program/inference_program.h"

#include "ops/inference_ops.h"
#include "passes/join_micro_batches.h"

namespace farskip {

PassPipeline evaluation_pipeline(const Model& model, const StepObjective* objective,
                                 const EvaluationShape& shape, DType compute, const MeshPosition& mesh) {
  LowerOptions lowering;
  lowering.batch = shape.sequences;
  lowering.sequence_length = shape.sequence_length;
  lowering.head = shape.head;
  lowering.document_mask = shape.document_mask;
  lowering.dtype = compute;
  const std::int64_t all_rows = shape.sequences * shape.sequence_length * model.config.moe.top_k;
  PassPipeline pipeline = objective_pipeline(objective, model, lowering, {mesh, false, all_rows});
  const char* const name = shape.head == HeadOutput::logits         ? "logits"
                           : shape.head == HeadOutput::token_losses ? "token-losses"
                                                                    : "evaluation";
  pipeline.name = fmt::format("{}-{}x{}", name, shape.sequences, shape.sequence_length);
  return pipeline;
}

namespace {

/// Adds the choice of the next tokens.
Graph add_draw(const Graph& forward, const CachedRunShape& shape) {
  Graph graph = forward;
  Builder b{graph, {0, 0, -1, SubBlock::head, Phase::forward}};
  const ValueId logits = *graph.find_output("logits");
  const std::int64_t rows = b.shape(logits)[0], vocab = b.shape(logits)[1];
  const auto input = [&](std::string_view name, DType dtype, std::int64_t width) {
    return graph.add_external(ExternalKind::input, std::string(name), {dtype, Shape{rows, width}, {}});
  };
  const ValueId real = input(kDrawReal, DType::f32, 4), whole = input(kDrawWhole, DType::i32, 4);
  ValueId seen;
  if (shape.penalised) seen = input(kDrawSeen, DType::i32, (vocab + 31) / 32);
  graph.add_output("next", ops::sample(b, logits, real, whole, seen, {.num_ids = shape.num_ids}));
  return graph;
}

}  // namespace

PassPipeline cached_pipeline(const Model& model, const CachedRunShape& shape, DType compute,
                             const MeshPosition& mesh) {
  LowerOptions lowering;
  lowering.sequence_length = shape.cache.tokens;
  lowering.head = shape.scores ? HeadOutput::token_losses : HeadOutput::logits;
  lowering.cache = shape.cache;
  lowering.dtype = compute;
  PassPipeline pipeline =
      forward_pipeline(model, lowering, {mesh, false, shape.cache.tokens * model.config.moe.top_k});
  pipeline.name = fmt::format("cached-{}-of-{}", shape.cache.outputs, shape.cache.tokens);
  if (shape.cache.fresh_length > 0) pipeline.name += fmt::format("-fresh-{}", shape.cache.fresh_length);
  if (shape.scores)
    pipeline.name += "-scores";
  else
    pipeline.passes.push_back({"draw", [=](const Graph& graph) { return add_draw(graph, shape); }});
  return pipeline;
}

PassPipeline cached_pipeline(const Model& model, const std::vector<CachedRunShape>& parts, DType compute,
                             const MeshPosition& mesh) {
  PassPipeline pipeline = cached_pipeline(model, parts.front(), compute, mesh);
  if (parts.size() == 1) return pipeline;
  pipeline.name += fmt::format("-in-{}-parts", parts.size());
  pipeline.passes.push_back({"join_micro_batches", [=](const Graph& first) {
                               Graph joined = first;
                               for (std::size_t i = 1; i < parts.size(); ++i)
                                 joined = join_micro_batches(
                                     joined, build_graph(cached_pipeline(model, parts[i], compute, mesh)),
                                     static_cast<int>(i), {kBlockTable});
                               return joined;
                             }});
  pipeline.passes.push_back({"interleave_micro_batches", interleave_micro_batches});
  return pipeline;
}

}  // namespace farskip
