// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a run reads: sources to train on and to validate with, and the files that travel with its weights.

#include <memory>
#include <string_view>
#include <vector>

#include "checkpoint/resume_rules.h"
#include "data/sampler.h"
#include "farskip/base/log.h"
#include "farskip/comm/communicator.h"
#include "farskip/config/run_config.h"
#include "farskip/engine/batch.h"
#include "hub/companions.h"

namespace farskip {

struct RunData {
  std::unique_ptr<Sampler> train;
  std::vector<std::unique_ptr<Sampler>> validation;  // one a source, in order
  Companions companions;                             // what checkpoints get beside the weights
};
/// Those of the folder that the run starts from, with the tokenizer that the configuration names.
Companions read_run_companions(const RunConfig& config);
/// Opens token files, or tokenizes text (cached under run_dir/../cache), and checks that the vocabulary
/// fits the model. Rank 0 first, then the others at once: what it leaves on disk they find there. Collective.
RunData open_run_data(const RunConfig& config, const ModelConfig& model, const Communicator& world,
                      const Logger& logger);
/// What the paths of the configuration hold, for settings_of (checkpoint/resume_rules.h). Reads a part of all
/// data and of a teacher.
RunSettings describe_contents(const RunConfig& config, const RunData& data);

/// Which samples of a step one of `ranks` ranks reads: in each of its micro-batches consecutive ones.
struct StepSamples {
  std::int64_t micro_batch = 1, micro_batches = 1;
  int rank = 0, ranks = 1;
  /// `step_first`: the first sample of the step.
  std::int64_t first(std::int64_t step_first, std::int64_t part) const {
    return step_first + (part * ranks + rank) * micro_batch;
  }
  std::vector<Batch> read(const Sampler& sampler, std::int64_t step_first) const;
  /// "64 to 65, 68 to 69".
  std::string text(std::int64_t step_first) const;
};

/// What is to be said where a loss has no target.
inline constexpr std::string_view kNoTargets =
    "no target counts (data.padding, data.prompt_end and data.document_mask leave targets out)";

}  // namespace farskip
