// SPDX-License-Identifier: Apache-2.0
#include "measure/bench_joined_step.h"

#include <chrono>

#include "measure/measure.h"
#include "measure/random_engine.h"

namespace farskip {
namespace {

TrainEngineOptions planned(const Model& model, TrainEngineOptions options, const Context& context) {
  plan_by_measuring(model, context, options);
  return options;
}

/// A student with weights and memory of its own, in a step that distils or that does not.
class Student {
 public:
  Student(const Model& model, const TrainEngineOptions& options, const Context& context, std::uint64_t seed)
      : options_(planned(model, options, context)),
        engine_(model, options_, context.with_own_arena(), seed) {}

  void step(const std::vector<Batch>& batches, float scale, std::int64_t number) {
    engine_->step(batches, scale, 0.0F, 1e-4, number);
  }
  const TrainEngineOptions& options() const { return options_; }
  MemoryReport memory() const { return engine_->memory(); }

 private:
  TrainEngineOptions options_;
  RandomEngine engine_;
};

/// A teacher that no student is joined to.
class TeacherForward {
 public:
  TeacherForward(const ModelConfig& model, DType compute, const Context& shared, std::uint64_t seed)
      : context_(shared.with_own_arena()),
        states_(random_constants(model, compute, seed)),
        engine_(wire_model(model), states_, context_) {}

  void run(const std::vector<Batch>& batches, std::int64_t sequence_length) {
    for (const Batch& batch : batches) engine_.loss(batch, sequence_length);
  }
  MemoryReport memory() const { return {.weights = states_->num_bytes(), .arena = context_.arena->size()}; }

 private:
  std::shared_ptr<const States> random_constants(const ModelConfig& model, DType compute,
                                                 std::uint64_t seed) const {
    const auto parameters = local_parameters(list_parameters(model), context_.mesh.position(), false);
    auto states = std::make_shared<States>(context_.device(), constant_states(parameters, compute));
    initialise_weights(*states, seed, model.initializer_range);
    return states;
  }

  Context context_;
  std::shared_ptr<const States> states_;
  InferenceEngine engine_;
};

/// All ranks begin together.
template <class F>
double seconds_of(const Communicator& world, const F& f) {
  world.barrier();
  const auto start = std::chrono::steady_clock::now();
  f();
  world.barrier();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

SeparateReport bench_joined_step(const ModelConfig& student, const DistillSetup& setup,
                                 const TrainEngineOptions& options, const Context& context,
                                 const SeparateOptions& separate) {
  TrainEngineOptions joined_options = options, alone_options = options;
  add_random_distillation(joined_options, setup, student, context, separate.seed);
  alone_options.frozen = joined_options.frozen;
  const Model model = wire_model(student);
  Student joined(model, joined_options, context, separate.seed);
  Student alone(model, alone_options, context, separate.seed);
  TeacherForward teacher(setup.teacher, options.compute, context, separate.seed);

  const Communicator& world = context.world();
  const auto scale = 1.0F / static_cast<float>(options.micro_batch * options.sequence_length *
                                               options.micro_batches * context.mesh.batch().size());
  SeparateReport report;
  for (int i = 0; i < separate.warmup + separate.repetitions; ++i) {
    const std::vector<Batch> batches = random_step(separate.seed, static_cast<std::uint64_t>(i),
                                                   joined.options(), context.mesh, student.vocab_size);
    double together = 0, forward = 0, step = 0;
    // Which goes first changes: a machine that grows warmer favours neither.
    for (const bool first : {true, false}) {
      if (first == (i % 2 == 0)) {
        together = seconds_of(world, [&] { joined.step(batches, scale, i + 1); });
      } else {
        forward = seconds_of(world, [&] { teacher.run(batches, options.sequence_length); });
        step = seconds_of(world, [&] { alone.step(batches, scale, i + 1); });
      }
    }
    if (i < separate.warmup) continue;
    report.joined_seconds.push_back(together);
    report.teacher_seconds.push_back(forward);
    report.student_seconds.push_back(step);
    report.separate_seconds.push_back(forward + step);
  }
  report.joined = joined.memory();
  report.teacher = teacher.memory();
  report.student = alone.memory();
  return report;
}

}  // namespace farskip
