// SPDX-License-Identifier: Apache-2.0
#pragma once
// A run of few steps on the fixture deepseek_v2, from its configuration to its checkpoints.

#include <memory>
#include <string>
#include <vector>

#include "distill/distillation.h"
#include "farskip/config/run_config.h"
#include "run/trainer.h"
#include "support/support.h"

namespace farskip::test {

struct SmallRun {
  RunConfig config;
  ModelConfig model;
};

enum class SmallRunKind { train, distill };

inline std::filesystem::path small_model() {
  return fixtures() / "deepseek_v2";
}

/// Six steps of 4 sequences of 32 tokens, two at a time; held-out text after every third, a checkpoint after
/// every second. Training goes on from the fixture in standard wiring; distillation has it as the teacher of
/// a FarSkip student.
inline SmallRun make_small_run(const std::filesystem::path& run_dir, SmallRunKind kind,
                               const std::vector<std::string>& overrides = {}) {
  const std::string model = small_model().string();
  const bool distill = kind == SmallRunKind::distill;
  const std::string yaml = fmt::format(R"(
run_dir: {0}
device: cpu
farskip: {{mode: {1}}}
data: {{tokens: [{2}/tokens], validation: [{2}/tokens]}}
train:
  steps: 6
  sequence_length: 32
  global_batch: 4
  micro_batch: 2
  learning_rate: {{schedule: cosine, peak: 1.0e-3, final: 1.0e-4}}
  validate_every: 3
{3}: {{{4}: {2}}}
checkpoint: {{every: 2, keep: 10}}
)",
                                       run_dir.string(), distill ? "full" : "off", model,
                                       distill ? "distill" : "init", distill ? "teacher" : "from");
  ErrorList errors;
  ConfigNode tree = parse_yaml_text(yaml, "test", errors);
  for (const std::string& o : overrides) apply_override(tree, o, errors);
  SmallRun run{read_run_config(tree, errors, {.needs = {.distill = distill}}), read_hub_config(model)};
  errors.throw_if_any();
  run.model.farskip = *run.config.farskip;
  return run;
}

/// Without a device on the one that the configuration asks for.
inline TrainResult run_small(const SmallRun& run, const std::shared_ptr<Device>& device = nullptr,
                             const Logger& logger = Logger(LogLevel::off)) {
  Heartbeat heartbeat;
  return train(run.config, run.model, make_self_communicator(), heartbeat, logger, device);
}

}  // namespace farskip::test
