// Whole models on a GPU against the CPU. Where there is no GPU every test says so and checks nothing.
#include <cmath>
#include <cstdio>

#include "farskip/passes/farskip.h"
#include "farskip/train/devices.h"
#include "farskip/train/measure.h"
#include "farskip/train/trainer.h"
#include "support/catch.h"
#include "support/support.h"

namespace farskip {
namespace {

const Logger kQuiet(LogLevel::off);
constexpr std::int64_t kLength = 32, kSequences = 3;

bool no_gpu() {
  const std::string why = why_no_cuda_device();
  if (!why.empty()) WARN("SKIP: " << why);
  return !why.empty();
}

struct Training {
  Training(const std::string& name, FarSkipMode mode, const std::shared_ptr<Device>& device, DType compute,
           std::int64_t micro_batches = 1)
      : config(read_hub_config(test::fixtures() / name)),
        specs(list_parameters(config)),
        weights(make_parameter_tensors(specs)),
        layers(rewire_farskip(build_layer_graph(config), {mode, {}})),
        count(micro_batches),
        arena(device) {
    TrainEngineOptions options;
    options.micro_batch = kSequences;
    options.sequence_length = kLength;
    options.micro_batches = micro_batches;
    options.balance_loss = true;
    options.compute = compute;
    options.optimizer.weight_decay = 0.1;
    load_weights(weights, whole_parameters(specs), specs, SafetensorsFolder(test::fixtures() / name));
    engine = std::make_unique<TrainEngine>(config, layers, weights, options, arena, kQuiet);
    engine->upload_weights();
    inference = std::make_unique<InferenceEngine>(config, layers, engine->weights(), arena, kQuiet);
  }

  std::vector<Batch> batches(std::int64_t step) const {
    std::vector<Batch> out;
    for (std::int64_t i = 0; i < count; ++i)
      out.push_back(random_batch(3, static_cast<std::uint64_t>(count * step + i), kSequences * kLength,
                                 config.vocab_size));
    return out;
  }
  float scale() const { return 1.0F / static_cast<float>(count * kSequences * kLength); }
  StepResult step(std::int64_t number) {
    return engine->step(batches(number), scale(), 1e-3F, 1e-3, number + 1);
  }

  ModelConfig config;
  std::vector<ParameterSpec> specs;
  TensorMap weights;
  LayerGraph layers;
  std::int64_t count;
  Arena arena;
  std::unique_ptr<TrainEngine> engine;
  std::unique_ptr<InferenceEngine> inference;
};

double relative_error(const TensorView& got, const TensorView& want) {
  double difference = 0, norm = 0;
  for (std::int64_t i = 0; i < want.num_elements(); ++i) {
    difference += std::pow(static_cast<double>(got.as<float>()[i]) - want.as<float>()[i], 2);
    norm += std::pow(static_cast<double>(want.as<float>()[i]), 2);
  }
  return std::sqrt(difference / norm);
}

/// Bounds on relative errors: of logits and loss, of gradients, and of gradients that a token which goes to
/// another expert changes as a whole.
struct Bounds {
  double logits, loss, gradient, routed_gradient;
};

void compare(Training& cpu, Training& gpu, const Bounds& bounds) {
  const Batch batch = cpu.batches(0)[0];
  const TensorView want_logits = cpu.inference->logits(batch.tokens, kLength);
  CHECK(relative_error(gpu.inference->logits(batch.tokens, kLength), want_logits) < bounds.logits);
  const double want = cpu.inference->loss(batch, kLength).loss_sum;
  CHECK(gpu.inference->loss(batch, kLength).loss_sum == Catch::Approx(want).epsilon(bounds.loss));

  const auto batches = cpu.batches(0);
  const BatchLoss a = cpu.engine->compute_gradients(batches, cpu.scale(), 1e-3F);
  // The first run launches, the second records, the third replays: all give the same bits.
  std::vector<BatchLoss> losses;
  std::vector<TensorMap> gradients;
  for (int run = 0; run < 3; ++run) {
    losses.push_back(gpu.engine->compute_gradients(batches, gpu.scale(), 1e-3F));
    TensorMap copy = make_parameter_tensors(gpu.specs);
    for (const auto& [name, tensor] : gpu.engine->gradients())
      std::copy(tensor.bytes().begin(), tensor.bytes().end(), copy.at(name).bytes().begin());
    gradients.push_back(std::move(copy));
  }
  CHECK(losses[0].loss_sum == Catch::Approx(a.loss_sum).epsilon(bounds.loss));
  CHECK(losses[0].balance_loss == Catch::Approx(a.balance_loss).epsilon(10 * bounds.loss));
  for (int run = 1; run < 3; ++run) CHECK(losses[run].loss_sum == losses[0].loss_sum);
  for (const auto& [name, tensor] : cpu.engine->gradients()) {
    CAPTURE(name);
    const bool routed = name.find("mlp.experts") != std::string::npos ||
                        name.find("mlp.gate") != std::string::npos ||
                        name.find("post_attention_layernorm") != std::string::npos;
    CHECK(relative_error(gradients[0].at(name).view(), tensor.view()) <
          (routed ? bounds.routed_gradient : bounds.gradient));
    for (int run = 1; run < 3; ++run) {
      const auto first = gradients[0].at(name).bytes(), again = gradients[run].at(name).bytes();
      CHECK(std::equal(first.begin(), first.end(), again.begin()));
    }
  }
}

TEST_CASE("a GPU in fp32 gives the logits, losses and gradients of the CPU") {
  if (no_gpu()) return;
  for (const char* name : {"deepseek_v2", "deepseek_v2_yarn", "qwen3_moe", "qwen3_moe_tied"})
    for (const FarSkipMode mode : {FarSkipMode::off, FarSkipMode::full}) {
      CAPTURE(name, name_of(farskip_mode_names, mode));
      for (const std::int64_t micro_batches : {1, 3}) {
        Training cpu(name, mode, make_cpu_device(), DType::f32, micro_batches);
        Training gpu(name, mode, make_cuda_device(), DType::f32, micro_batches);
        compare(cpu, gpu, {1e-5, 1e-6, 1e-5, 1e-5});
      }
    }
}

TEST_CASE("a GPU in bf16 stays within rounding of the CPU in fp32") {
  if (no_gpu()) return;
  for (const char* name : {"deepseek_v2", "deepseek_v2_yarn", "qwen3_moe", "qwen3_moe_tied"})
    for (const FarSkipMode mode : {FarSkipMode::off, FarSkipMode::full}) {
      CAPTURE(name, name_of(farskip_mode_names, mode));
      Training cpu(name, mode, make_cpu_device(), DType::f32);
      Training gpu(name, mode, make_cuda_device(), DType::bf16);
      compare(cpu, gpu, {3e-2, 2e-3, 0.15, 0.8});
    }
}

TEST_CASE("training on a GPU follows the losses and gradient norms of the CPU") {
  if (no_gpu()) return;
  for (const char* name : {"deepseek_v2", "qwen3_moe"}) {
    CAPTURE(name);
    for (const DType compute : {DType::f32, DType::bf16}) {
      Training cpu(name, FarSkipMode::full, make_cpu_device(), DType::f32, 2);
      Training gpu(name, FarSkipMode::full, make_cuda_device(), compute, 2);
      const double loss = compute == DType::f32 ? 2e-5 : 5e-3, norm = compute == DType::f32 ? 1e-4 : 0.05;
      for (std::int64_t step = 0; step < 8; ++step) {
        CAPTURE(step);
        const StepResult a = cpu.step(step), b = gpu.step(step);
        CHECK(b.loss.loss_sum == Catch::Approx(a.loss.loss_sum).epsilon(loss));
        CHECK(b.grad_norm == Catch::Approx(a.grad_norm).epsilon(norm));
      }
    }
  }
}

TEST_CASE("observed steps on a GPU give the bits of replayed ones, and a time for every kernel") {
  if (no_gpu()) return;
  Training plain("deepseek_v2", FarSkipMode::off, make_cuda_device(), DType::bf16);
  Training observed("deepseek_v2", FarSkipMode::off, make_cuda_device(), DType::bf16);
  double seconds = 0;
  observed.engine->observe([&](const Executor& executor, const std::vector<StepTime>& times) {
    CHECK(times.size() == executor.plan().steps.size());
    for (const StepTime& t : times) seconds += t.seconds;
  });
  for (std::int64_t step = 0; step < 4; ++step) {
    const StepResult a = plain.step(step), b = observed.step(step);
    CHECK(a.loss.loss_sum == b.loss.loss_sum);
    CHECK(a.grad_norm == b.grad_norm);
  }
  CHECK(seconds > 0);
}

}  // namespace
}  // namespace farskip
