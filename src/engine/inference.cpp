// SPDX-License-Identifier: Apache-2.0
#include "farskip/engine/engine.h"

namespace farskip {
InferenceEngine::InferenceEngine(Model model, std::shared_ptr<const States> states, Context context,
                                 std::shared_ptr<const StepObjective> objective)
    : model_(std::move(model)),
      states_(std::move(states)),
      context_(std::move(context)),
      losses_(context_.device()),
      objective_(std::move(objective)) {}

BatchRunner& InferenceEngine::runner(const EvaluationShape& shape) {
  if (const auto it = runners_.find(shape); it != runners_.end()) return it->second;
  const StepObjective* objective = shape.head == HeadOutput::loss ? objective_.get() : nullptr;
  auto executor =
      compile(evaluation_pipeline(model_, objective, shape, states_->compute(), context_.mesh.position()),
              context_, {}, {.waits = Waits::late});
  states_->bind(*executor);
  if (objective != nullptr && objective->states() != nullptr) objective->states()->bind(*executor);
  return runners_.emplace(shape, BatchRunner(std::move(executor))).first->second;
}

BatchLoss InferenceEngine::loss(const Batch& batch, std::int64_t sequence_length) {
  const auto sequences = static_cast<std::int64_t>(batch.tokens.size()) / sequence_length;
  BatchRunner& r = runner({sequences, sequence_length, HeadOutput::loss, !batch.document_start.empty()});
  if (context_.heartbeat != nullptr) context_.heartbeat->beat();
  r.set_batch(batch);
  r.executor().run();
  losses_.keep(r.executor());
  const HeartbeatWait wait(context_.heartbeat, "the losses of an evaluation");
  return losses_.read();
}

/// An output in host memory.
TensorView InferenceEngine::run_for(const std::string& output, BatchRunner& runner, const Batch& batch) {
  if (context_.heartbeat != nullptr) context_.heartbeat->beat();
  runner.set_batch(batch);
  runner.executor().run();
  if (context_.device()->shares_host_memory()) return runner.executor().output(output);
  const HeartbeatWait wait(context_.heartbeat, "the outputs of an evaluation");
  output_ = runner.executor().read_output(output);
  return output_.view();
}

TensorView InferenceEngine::logits(std::span<const std::int32_t> tokens, std::int64_t sequence_length) {
  const auto sequences = static_cast<std::int64_t>(tokens.size()) / sequence_length;
  return run_for("logits", runner({sequences, sequence_length, HeadOutput::logits}),
                 {{tokens.begin(), tokens.end()}, {}, {}});
}

std::span<const float> InferenceEngine::token_losses(const Batch& batch, std::int64_t sequence_length) {
  const auto sequences = static_cast<std::int64_t>(batch.tokens.size()) / sequence_length;
  const TensorView losses =
      run_for("token_losses", runner({sequences, sequence_length, HeadOutput::token_losses}), batch);
  return {losses.as<float>(), batch.tokens.size()};
}

}  // namespace farskip
