// SPDX-License-Identifier: Apache-2.0
#include "farskip/measure/compare_separate.h"

#include <chrono>

#include "farskip/measure/measure.h"
#include "farskip/passes/farskip.h"

namespace farskip {
namespace {

/// A student with weights of its own, in a step that distils or that does not.
class Student {
 public:
  Student(const ModelConfig& model, TrainEngineOptions options, const Mesh& mesh,
          const std::shared_ptr<Device>& device, Heartbeat* heartbeat, const Logger& logger,
          std::uint64_t seed)
      : layers_(rewire_farskip(build_layer_graph(model), model.farskip)),
        parameters_(local_parameters(list_parameters(model), mesh.position(), options.zero)),
        weights_(make_parameter_tensors(specs_of(parameters_))),
        arena_(device),
        options_(with_costs(model, std::move(options), mesh, heartbeat, logger)),
        engine_(model, layers_, weights_, options_, arena_, logger, mesh, heartbeat) {
    initialise_weights(weights_, parameters_, seed, model.initializer_range);
    engine_.upload_weights();
  }

  void step(const std::vector<Batch>& batches, float scale, std::int64_t number) {
    engine_.step(batches, scale, 0.0F, 1e-4, number);
  }
  const TrainEngineOptions& options() const { return options_; }
  MemoryReport memory() const { return engine_.memory(); }

 private:
  TrainEngineOptions with_costs(const ModelConfig& model, TrainEngineOptions options, const Mesh& mesh,
                                Heartbeat* heartbeat, const Logger& logger) const {
    if (options.overlap && mesh.world().size() > 1)
      plan_by(std::make_shared<const CostTable>(measure_step_costs(
                  model, layers_, options, mesh, arena_.shared_device(), heartbeat, logger)),
              model, mesh, heartbeat, logger, options);
    return options;
  }

  LayerGraph layers_;
  std::vector<LocalParameter> parameters_;
  TensorMap weights_;
  Arena arena_;
  TrainEngineOptions options_;
  TrainEngine engine_;
};

/// A teacher that no student is joined to.
class TeacherForward {
 public:
  TeacherForward(const ModelConfig& model, DType compute, const Mesh& mesh,
                 const std::shared_ptr<Device>& device, Heartbeat* heartbeat, const Logger& logger,
                 std::uint64_t seed)
      : weights_(random_weights(model, compute, mesh.position(), device, seed)),
        arena_(device),
        engine_(model, rewire_farskip(build_layer_graph(model), model.farskip), weights_, arena_, logger,
                mesh, heartbeat) {}

  void run(const std::vector<Batch>& batches, std::int64_t sequence_length) {
    for (const Batch& batch : batches) engine_.loss(batch, sequence_length);
  }
  MemoryReport memory() const { return {.weights = weights_->num_bytes(), .arena = arena_.size()}; }

 private:
  static std::shared_ptr<const DeviceWeights> random_weights(const ModelConfig& model, DType compute,
                                                             const MeshPosition& mesh,
                                                             const std::shared_ptr<Device>& device,
                                                             std::uint64_t seed) {
    auto weights =
        std::make_shared<DeviceWeights>(device, make_random_teacher(model, mesh, seed).weights,
                                        local_parameters(list_parameters(model), mesh, false), compute);
    weights->upload();
    return weights;
  }

  std::shared_ptr<const DeviceWeights> weights_;
  Arena arena_;
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

SeparateReport compare_with_separate(const ModelConfig& student, const DistillSetup& setup,
                                     const TrainEngineOptions& options, const Mesh& mesh,
                                     const std::shared_ptr<Device>& device, Heartbeat* heartbeat,
                                     const Logger& logger, const SeparateOptions& separate) {
  TrainEngineOptions joined_options = options, alone_options = options;
  add_distillation(joined_options, setup, student,
                   make_random_teacher(setup.teacher, mesh.position(), separate.seed), device);
  alone_options.frozen = joined_options.frozen;
  Student joined(student, std::move(joined_options), mesh, device, heartbeat, logger, separate.seed);
  Student alone(student, std::move(alone_options), mesh, device, heartbeat, logger, separate.seed);
  TeacherForward teacher(setup.teacher, options.compute, mesh, device, heartbeat, logger, separate.seed);

  const Communicator& world = mesh.world();
  const auto scale = 1.0F / static_cast<float>(options.micro_batch * options.sequence_length *
                                               options.micro_batches * world.size());
  SeparateReport report;
  for (int i = 0; i < separate.warmup + separate.repetitions; ++i) {
    const std::vector<Batch> batches = random_step(separate.seed, static_cast<std::uint64_t>(i),
                                                   joined.options(), world, student.vocab_size);
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
