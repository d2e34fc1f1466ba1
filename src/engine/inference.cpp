// SPDX-License-Identifier: Apache-2.0
#include "farskip/engine/devices.h"
#include "farskip/engine/engine.h"

namespace farskip {
namespace {

std::shared_ptr<DeviceWeights> upload_weights(const std::shared_ptr<Device>& device,
                                              const ModelConfig& config, const TensorMap& weights,
                                              const Mesh& mesh) {
  auto on_device = std::make_shared<DeviceWeights>(
      device, weights, local_parameters(list_parameters(config), mesh.position(), false), DType::f32);
  on_device->upload();
  return on_device;
}

}  // namespace

InferenceEngine::InferenceEngine(ModelConfig config, LayerGraph layers,
                                 std::shared_ptr<const DeviceWeights> weights, Arena& arena, Logger logger,
                                 Mesh mesh, Heartbeat* heartbeat,
                                 std::shared_ptr<const StepObjective> objective)
    : config_(std::move(config)),
      layers_(std::move(layers)),
      weights_(std::move(weights)),
      logger_(std::move(logger)),
      arena_(arena),
      losses_(arena.shared_device()),
      mesh_(std::move(mesh)),
      heartbeat_(heartbeat),
      objective_(std::move(objective)) {}

InferenceEngine::InferenceEngine(ModelConfig config, LayerGraph layers, const TensorMap& weights,
                                 Arena& arena, Logger logger, Mesh mesh, Heartbeat* heartbeat)
    : InferenceEngine(config, std::move(layers), upload_weights(arena.shared_device(), config, weights, mesh),
                      arena, std::move(logger), mesh, heartbeat) {}

BatchRunner& InferenceEngine::runner(std::int64_t batch, std::int64_t sequence_length, bool logits,
                                     bool document_mask) {
  const std::tuple key{batch, sequence_length, logits, document_mask};
  if (const auto it = runners_.find(key); it != runners_.end()) return it->second;
  LowerOptions options;
  options.batch = batch;
  options.sequence_length = sequence_length;
  options.logits = logits;
  options.document_mask = document_mask;
  options.dtype = weights_->compute();
  const StepSharding sharding{mesh_.position(), false, batch * sequence_length * config_.moe.top_k};
  const StepObjective* objective = logits ? nullptr : objective_.get();
  auto executor = compile(build_objective_graph(objective, config_, layers_, options, sharding), arena_, {},
                          logger_, {&mesh_, heartbeat_});
  weights_->bind(*executor);
  if (objective != nullptr) objective->bind(*executor);
  return runners_.emplace(key, BatchRunner(std::move(executor))).first->second;
}

BatchLoss InferenceEngine::loss(const Batch& batch, std::int64_t sequence_length) {
  const auto sequences = static_cast<std::int64_t>(batch.tokens.size()) / sequence_length;
  BatchRunner& r = runner(sequences, sequence_length, false, !batch.document_start.empty());
  if (heartbeat_ != nullptr) heartbeat_->beat();
  r.set_batch(batch);
  r.executor().run();
  losses_.keep(r.executor());
  const HeartbeatWait wait(heartbeat_, "the losses of an evaluation");
  return losses_.read();
}

TensorView InferenceEngine::logits(std::span<const std::int32_t> tokens, std::int64_t sequence_length) {
  BatchRunner& r =
      runner(static_cast<std::int64_t>(tokens.size()) / sequence_length, sequence_length, true, false);
  r.set_batch({{tokens.begin(), tokens.end()}, {}, {}});
  r.executor().run();
  const TensorView logits = r.executor().output("logits");
  if (arena_.device().shares_host_memory()) return logits;
  logits_ = r.executor().read_output("logits");
  return logits_.view();
}

}  // namespace farskip
