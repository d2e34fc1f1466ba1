// SPDX-License-Identifier: Apache-2.0
#include "farskip/engine/engine.h"

namespace farskip {

InferenceEngine::InferenceEngine(Model model, const std::shared_ptr<const States>& states,
                                 const Context& context, std::shared_ptr<const StepObjective> objective)
    : model_(std::move(model)),
      compute_(states->compute()),
      objective_(std::move(objective)),
      runner_(context, {states, objective_states(objective_)}),
      losses_(context.device()) {}

Stage& InferenceEngine::stage(const EvaluationShape& shape) {
  const StepObjective* objective = shape.head == HeadOutput::loss ? objective_.get() : nullptr;
  return runner_.stage(
      shape, [&] { return evaluation_pipeline(model_, objective, shape, compute_, mesh().position()); },
      {.waits = Waits::late});
}

Stage& InferenceEngine::run(const EvaluationShape& shape, const Batch& batch) {
  Stage& s = stage(shape);
  s.set_batch(batch);
  runner_.run(s);
  return s;
}

BatchLoss InferenceEngine::loss(const Batch& batch, std::int64_t sequence_length) {
  const auto sequences = static_cast<std::int64_t>(batch.tokens.size()) / sequence_length;
  const Stage& s = run({sequences, sequence_length, HeadOutput::loss, !batch.document_start.empty()}, batch);
  losses_.keep(s.executor());
  const HeartbeatWait wait(runner_.context().heartbeat, "the losses of an evaluation");
  return losses_.read();
}

TensorView InferenceEngine::logits(std::span<const std::int32_t> tokens, std::int64_t sequence_length) {
  const auto sequences = static_cast<std::int64_t>(tokens.size()) / sequence_length;
  return runner_.read(
      run({sequences, sequence_length, HeadOutput::logits}, {{tokens.begin(), tokens.end()}, {}, {}}),
      "logits");
}

std::span<const float> InferenceEngine::token_losses(const Batch& batch, std::int64_t sequence_length) {
  const auto sequences = static_cast<std::int64_t>(batch.tokens.size()) / sequence_length;
  const TensorView losses =
      runner_.read(run({sequences, sequence_length, HeadOutput::token_losses}, batch), "token_losses");
  return {losses.as<float>(), batch.tokens.size()};
}

}  // namespace farskip
