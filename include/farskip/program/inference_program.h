// SPDX-License-Identifier: Apache-2.0
#pragma once
// The graphs of a model that is asked, not trained: whole sequences, or tokens beside a cache.

#include "farskip/program/objective.h"

namespace farskip {

/// A forward alone: the losses of an objective (none: cross-entropy on the data), or another output of the
/// head.
struct EvaluationShape {
  std::int64_t sequences = 1, sequence_length = 1;
  HeadOutput head = HeadOutput::loss;
  bool document_mask = false;
  auto operator<=>(const EvaluationShape&) const = default;
};
/// Made for the worst routing.
PassPipeline evaluation_pipeline(const Model& model, const StepObjective* objective,
                                 const EvaluationShape& shape, DType compute, const MeshPosition& mesh);

/// Tokens that continue what lies in a cache: the first tokens of a text, as many as there are, or the next
/// one of each of many texts, or both at once. Outputs "logits" [outputs, V] f32 and "next" i32[outputs], the
/// tokens that ops::sample chooses by the inputs kDrawReal, kDrawWhole and, with a penalty, kDrawSeen. With
/// `scores` instead the input "targets" i32[outputs] and the output "token_losses" [outputs] f32.
struct CachedRunShape {
  CacheShape cache;
  bool scores = false;       // how likely given tokens are, not which are chosen
  bool penalised = false;    // some text has a repetition penalty
  std::int64_t num_ids = 0;  // ids below it may be chosen; 0: all
  auto operator<=>(const CachedRunShape&) const = default;
};
inline constexpr std::string_view kDrawReal = "draw_real", kDrawWhole = "draw_whole", kDrawSeen = "draw_seen";
PassPipeline cached_pipeline(const Model& model, const CachedRunShape& shape, DType compute,
                             const MeshPosition& mesh);
/// A run in parts, of other texts each, over one cache: what is computed of one may run under the transports
/// of another (passes/join_micro_batches.h). Inputs and outputs of part i > 0 end in "#i".
PassPipeline cached_pipeline(const Model& model, const std::vector<CachedRunShape>& parts, DType compute,
                             const MeshPosition& mesh);

}  // namespace farskip
