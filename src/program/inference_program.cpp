// SPDX-License-Identifier: Apache-2.0
#include "farskip/program/inference_program.h"

namespace farskip {

PassPipeline evaluation_pipeline(const Model& model, const StepObjective* objective,
                                 const EvaluationShape& shape, DType compute, const MeshPosition& mesh) {
  LowerOptions lowering;
  lowering.batch = shape.sequences;
  lowering.sequence_length = shape.sequence_length;
  lowering.logits = shape.logits;
  lowering.document_mask = shape.document_mask;
  lowering.dtype = compute;
  const std::int64_t all_rows = shape.sequences * shape.sequence_length * model.config.moe.top_k;
  PassPipeline pipeline = objective_pipeline(objective, model, lowering, {mesh, false, all_rows});
  pipeline.name =
      fmt::format("{}-{}x{}", shape.logits ? "logits" : "evaluation", shape.sequences, shape.sequence_length);
  return pipeline;
}

PassPipeline cached_pipeline(const Model& model, const CacheShape& shape, DType compute,
                             const MeshPosition& mesh) {
  LowerOptions lowering;
  lowering.sequence_length = shape.tokens;
  lowering.logits = true;
  lowering.cache = shape;
  lowering.dtype = compute;
  PassPipeline pipeline =
      forward_pipeline(model, lowering, {mesh, false, shape.tokens * model.config.moe.top_k});
  pipeline.name = fmt::format("cached-{}-of-{}", shape.outputs, shape.tokens);
  return pipeline;
}

}  // namespace farskip
