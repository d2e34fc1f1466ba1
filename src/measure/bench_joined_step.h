// SPDX-License-Identifier: Apache-2.0
#pragma once
// A distillation step in one graph against its two models by themselves: the forward of the teacher, then a
// step of the student on the data.

#include <vector>

#include "distill/distill_setup.h"

namespace farskip {

struct SeparateOptions {
  int repetitions = 5, warmup = 1;
  std::uint64_t seed = 1;  // of weights and tokens
};

struct SeparateReport {
  // Of each timed repetition, on this rank.
  std::vector<double> joined_seconds, teacher_seconds, student_seconds, separate_seconds;
  MemoryReport joined, teacher, student;  // planned
};

/// Runs the three in turns, each from its own memory, on random weights and tokens. Both losses need the
/// head's product of teacher and student, so that all of them do the same arithmetic. `options`: of the
/// student's step, without objective. Collective.
SeparateReport bench_joined_step(const ModelConfig& student, const DistillSetup& setup,
                                 const TrainEngineOptions& options, const Context& context,
                                 const SeparateOptions& separate);

}  // namespace farskip
