// SPDX-License-Identifier: Apache-2.0
#pragma once
// The training run: data, steps, validation, metrics, checkpoints.

#include <memory>
#include <optional>

#include "farskip/base/heartbeat.h"
#include "farskip/config/run_config.h"
#include "farskip/data/sampler.h"
#include "farskip/train/companions.h"
#include "farskip/train/engine.h"
#include "farskip/train/resume_rules.h"

namespace farskip {

struct RunData {
  std::unique_ptr<Sampler> train;
  std::vector<std::unique_ptr<Sampler>> validation;  // one a source, in order
  Companions companions;                             // what checkpoints get beside the weights
};
/// Those of the folder that the run starts from, with the tokenizer that the configuration names.
Companions read_run_companions(const RunConfig& config);
/// Opens token files, or tokenizes text (cached under run_dir/../cache), and checks that the vocabulary
/// fits the model.
RunData open_run_data(const RunConfig& config, const ModelConfig& model, const Logger& logger);
/// What the paths of the configuration hold, for settings_of (train/resume_rules.h). Reads a part of all data
/// and of a teacher.
RunSettings describe_contents(const RunConfig& config, const RunData& data);

/// What is to be said where a loss has no target.
inline constexpr std::string_view kNoTargets =
    "no target counts (data.padding, data.prompt_end and data.document_mask leave targets out)";

/// Samples [first, first + count) as one batch.
Batch read_batch(const Sampler& sampler, std::uint64_t first, std::int64_t count);
std::int64_t count_targets(const Batch& batch);

struct Evaluation {
  double loss = 0;      // cross-entropy, mean over counted tokens, nats; NaN without any
  double accuracy = 0;  // share of counted tokens with the target on top
  std::int64_t tokens = 0;
  std::map<std::string, double> means{};  // of BatchLoss::sums, over counted tokens
};
/// One pass over a source in order, at most `max_sequences` (0: all of them), `batch` at a time on each rank
/// of the engine. Collective; the same on every rank.
Evaluation evaluate(InferenceEngine& engine, const Sampler& sampler, std::int64_t batch,
                    std::int64_t max_sequences);

struct TrainResult {
  std::int64_t step = 0;
  std::optional<double> loss;  // of the last step that had targets, if this run did one
  std::optional<double> validation_loss;
  bool stopped_early = false;  // on request: a checkpoint was saved, the run can be resumed
  bool converged = false;      // distillation: early stopping ended it
};

/// What the configuration says about the engine on each of `world_size` ranks. UsageError unless the batch
/// can be dealt out to them evenly.
TrainEngineOptions engine_options(const RunConfig& config, int world_size);

/// What the configuration asks for and this build on this machine cannot do, as a UsageError naming the key.
void refuse_unsupported(const RunConfig& config);

/// Trains to the end, or until a stop signal; with a section `distill`, on what its teacher says. `model` is
/// the architecture that the configuration names. Collective over `world`, the ranks of the job. `device`:
/// absent, the one that the configuration asks for.
TrainResult train(const RunConfig& config, const ModelConfig& model, const Communicator& world,
                  Heartbeat& heartbeat, const Logger& logger, std::shared_ptr<Device> device = nullptr);

}  // namespace farskip
