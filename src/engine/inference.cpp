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
  const StepObjective* objective = shape.logits ? nullptr : objective_.get();
  auto executor =
      compile(evaluation_pipeline(model_, objective, shape, states_->compute(), context_.mesh.position()),
              context_, {});
  states_->bind(*executor);
  if (objective != nullptr && objective->states() != nullptr) objective->states()->bind(*executor);
  return runners_.emplace(shape, BatchRunner(std::move(executor))).first->second;
}

BatchLoss InferenceEngine::loss(const Batch& batch, std::int64_t sequence_length) {
  const auto sequences = static_cast<std::int64_t>(batch.tokens.size()) / sequence_length;
  BatchRunner& r = runner({sequences, sequence_length, false, !batch.document_start.empty()});
  if (context_.heartbeat != nullptr) context_.heartbeat->beat();
  r.set_batch(batch);
  r.executor().run();
  losses_.keep(r.executor());
  const HeartbeatWait wait(context_.heartbeat, "the losses of an evaluation");
  return losses_.read();
}

TensorView InferenceEngine::logits(std::span<const std::int32_t> tokens, std::int64_t sequence_length) {
  BatchRunner& r =
      runner({static_cast<std::int64_t>(tokens.size()) / sequence_length, sequence_length, true});
  r.set_batch({{tokens.begin(), tokens.end()}, {}, {}});
  r.executor().run();
  const TensorView logits = r.executor().output("logits");
  if (context_.device()->shares_host_memory()) return logits;
  logits_ = r.executor().read_output("logits");
  return logits_.view();
}

}  // namespace farskip
