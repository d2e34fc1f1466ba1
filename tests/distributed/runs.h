// SPDX-License-Identifier: Apache-2.0
#pragma once
// Whole training runs, as the program makes them, on ranks that are threads.

#include "checkpoint/training_checkpoint.h"
#include "layouts.h"
#include "run/trainer.h"

namespace farskip::test {

inline const Logger kQuiet(LogLevel::off);

struct Run {
  RunConfig config;
  ModelConfig model;
  int ranks;
};

/// A fixture's model, in the wiring `full`, on text of 160 ids. `overrides`: as on a command line.
Run make_run(const fs::path& run_dir, const Layout& layout, std::int64_t steps,
             const std::vector<std::string>& overrides = {}, const std::string& fixture = "qwen3_moe");

/// What rank 0 returns. Throws std::runtime_error if ranks end in different ways.
TrainResult train_run(const Run& run);

/// Compares metrics.jsonl of two runs; `tolerance` 0: to the bit.
void check_metrics(const fs::path& got_dir, const fs::path& want_dir, double tolerance);

/// Of the largest element of a tensor.
double checkpoint_difference(const fs::path& got, const fs::path& want);

}  // namespace farskip::test
