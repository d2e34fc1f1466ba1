// SPDX-License-Identifier: Apache-2.0
// Whole models on a GPU against the CPU. Without a GPU they are skipped.
#include "engine/devices.h"
#include "infer/log_likelihood.h"
#include "support/catch.h"
#include "support/models.h"
#include "support/skip.h"
#include "support/training.h"

namespace farskip {
namespace {

using test::relative_error;

constexpr std::int64_t kLength = 32;

void need_gpu() {
  if (const std::string why = why_no_cuda_device(); !why.empty()) test::skip(why);
}

TrainEngineOptions options_of(DType compute, std::int64_t micro_batches) {
  TrainEngineOptions options;
  options.micro_batch = 3;
  options.sequence_length = kLength;
  options.micro_batches = micro_batches;
  options.balance_loss = true;
  options.compute = compute;
  return options;
}

/// And inference with the same weights.
struct Training : test::Training {
  Training(const std::string& fixture, FarSkipMode mode, const std::shared_ptr<Device>& device,
           const TrainEngineOptions& engine_options)
      : test::Training(fixture, mode, device, engine_options), inference(model, states, context) {}
  Training(const std::string& fixture, FarSkipMode mode, const std::shared_ptr<Device>& device, DType compute,
           std::int64_t micro_batches = 1)
      : Training(fixture, mode, device, options_of(compute, micro_batches)) {}

  InferenceEngine inference;
};

/// Bounds on relative errors: of logits and loss, of gradients, and of gradients that a token which goes to
/// another expert changes as a whole.
struct Bounds {
  double logits, loss, gradient, routed_gradient;
};

/// `repeats`: the GPU's kernels have to give the same bits in each run.
void compare(Training& cpu, Training& gpu, const Bounds& bounds, bool repeats = true) {
  const Batch batch = cpu.batches(0)[0];
  const TensorView want_logits = cpu.inference.logits(batch.tokens, kLength);
  CHECK(relative_error(gpu.inference.logits(batch.tokens, kLength), want_logits) < bounds.logits);
  const double want = cpu.inference.loss(batch, kLength).loss_sum;
  CHECK(gpu.inference.loss(batch, kLength).loss_sum == Catch::Approx(want).epsilon(bounds.loss));

  const BatchLoss a = cpu.compute_gradients();
  // The first run launches, the second records, the third replays.
  std::vector<BatchLoss> losses;
  std::vector<TensorMap> gradients;
  for (int run = 0; run < 3; ++run) {
    losses.push_back(gpu.compute_gradients());
    gradients.push_back(gpu.gradients());
  }
  CHECK(losses[0].loss_sum == Catch::Approx(a.loss_sum).epsilon(bounds.loss));
  CHECK(losses[0].balance_loss == Catch::Approx(a.balance_loss).epsilon(10 * bounds.loss));
  for (int run = 1; run < 3; ++run) CHECK(losses[run].loss_sum == losses[0].loss_sum);
  for (const auto& [name, tensor] : cpu.gradients()) {
    CAPTURE(name);
    CHECK(relative_error(gradients[0].at(name).view(), tensor.view()) <
          (test::depends_on_routing(name) ? bounds.routed_gradient
           : test::nearly_cancels(name)   ? 3.5 * bounds.gradient
                                          : bounds.gradient));
    for (int run = 1; run < 3; ++run)
      if (repeats)
        CHECK(test::same_bytes(gradients[0].at(name), gradients[run].at(name)));
      else
        CHECK(relative_error(gradients[run].at(name).view(), gradients[0].at(name).view()) < bounds.gradient);
  }
}

TEST_CASE("a GPU in fp32 gives the logits, losses and gradients of the CPU") {
  need_gpu();
  for (const std::string& name : test::model_fixtures())
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
  need_gpu();
  for (const std::string& name : test::model_fixtures())
    for (const FarSkipMode mode : {FarSkipMode::off, FarSkipMode::full}) {
      CAPTURE(name, name_of(farskip_mode_names, mode));
      Training cpu(name, mode, make_cpu_device(), DType::f32);
      Training gpu(name, mode, make_cuda_device(), DType::bf16);
      compare(cpu, gpu, {4e-2, 2e-3, 0.15, 0.8});
    }
}

TEST_CASE("a GPU in bf16 that need not repeat its bits stays within the same bounds of the CPU") {
  need_gpu();
  for (const char* name : {"deepseek_v2", "qwen3_moe"}) {
    CAPTURE(name);
    TrainEngineOptions options = options_of(DType::bf16, 1);
    options.deterministic = false;
    Training cpu(name, FarSkipMode::full, make_cpu_device(), DType::f32);
    Training gpu(name, FarSkipMode::full, make_cuda_device(), options);
    compare(cpu, gpu, {4e-2, 2e-3, 0.15, 0.8}, false);
  }
}

TEST_CASE("choices that share their beginnings are as likely on a GPU as on the CPU") {
  need_gpu();
  for (const std::string& name : test::model_fixtures())
    for (const auto& [compute, bound] : {std::pair{DType::f32, 2e-5}, {DType::bf16, 2e-2}}) {
      CAPTURE(name, dtype_name(compute));
      const Training cpu(name, FarSkipMode::full, make_cpu_device(), DType::f32);
      const Training gpu(name, FarSkipMode::full, make_cuda_device(), compute);
      const std::vector<std::int32_t> ids = cpu.batches(0)[0].tokens;
      std::vector<Continuation> choices;
      for (const int context : {5, 21, 40, 55})  // of these tokens; choices of one to seven
        for (int choice = 0; choice < 4; ++choice)
          choices.push_back({{ids.begin(), ids.begin() + context},
                             {ids.begin() + 60 + choice, ids.begin() + 61 + 3 * choice}});
      const std::vector<double> wanted = log_likelihoods(cpu.model, cpu.states, cpu.context, choices, 8);
      for (const std::int64_t batch : {1, 8}) {
        const std::vector<double> found = log_likelihoods(gpu.model, gpu.states, gpu.context, choices, batch);
        for (std::size_t i = 0; i < wanted.size(); ++i)
          CHECK(found[i] == Catch::Approx(wanted[i]).epsilon(bound));
      }
    }
}

TEST_CASE("training on a GPU follows the losses and gradient norms of the CPU") {
  need_gpu();
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
  need_gpu();
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
