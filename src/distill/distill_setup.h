// SPDX-License-Identifier: Apache-2.0
#pragma once
// A distillation as it is known before any weights are read: for the run itself, for its plan, for measuring.

#include <memory>
#include <set>
#include <string>

#include "distill/distill_objective.h"
#include "farskip/config/run_config.h"
#include "farskip/engine/engine.h"

namespace farskip {

struct DistillSetup {
  DistillConfig config;
  ModelConfig teacher;
  bool from_teacher = true;  // the student begins with the teacher's weights
};

/// Of a run with a section `distill` whose teacher is a model folder.
DistillSetup read_distill_setup(const RunConfig& config);

/// What is minimised. UsageError where teacher and student do not fit.
DistillTerms make_terms(const DistillConfig& config, const ModelConfig& student, const ModelConfig& teacher);

/// The same of a local stage: the loss is the head's, on the teacher's stream.
DistillTerms local_terms(const DistillTerms& terms);

/// Frozen parameters that both models have and begin with alike, which are then one tensor. With kept outputs
/// there are none: no teacher is in memory.
std::set<std::string> shared_parameters(const DistillSetup& setup, const ModelConfig& student);

/// The teacher as it is planned beside the student; `zero`: LocalParameter::zero of its own tensors.
Teacher plan_teacher(const DistillSetup& setup, const ModelConfig& student, int zero = 0);

/// Adds what a step minimises and what it leaves as it is. `make_states`: of the teacher's, if steps are to
/// run; not called with kept outputs.
using MakeTeacherStates = std::function<std::shared_ptr<const States>(const Teacher&)>;
void add_distillation(TrainEngineOptions& options, const DistillSetup& setup, const ModelConfig& student,
                      const MakeTeacherStates& make_states = {});
/// The same with random weights, for measuring.
void add_random_distillation(TrainEngineOptions& options, const DistillSetup& setup,
                             const ModelConfig& student, const Context& context, std::uint64_t seed);

/// Compares a model with the teacher in a folder, which is loaded, on text that nothing learns from.
/// Collective. UsageError where the two do not fit.
std::shared_ptr<const StepObjective> open_comparison(const fs::path& teacher, const ModelConfig& student,
                                                     DType compute, const Context& context);

}  // namespace farskip
