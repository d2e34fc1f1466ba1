// SPDX-License-Identifier: Apache-2.0
// Engines on a device whose memory the host cannot touch, and computation in bf16, on the CPU
// (tests/reference/rounded.h).
#include <algorithm>
#include <cmath>

#include "engine/devices.h"
#include "engine/engine_options.h"
#include "infer/log_likelihood.h"
#include "reference/rounded.h"
#include "run/trainer.h"
#include "support/catch.h"
#include "support/models.h"
#include "support/skip.h"
#include "support/training.h"

namespace farskip {
namespace {

using test::relative_error;
using test::Training;

constexpr std::int64_t kLength = 16;

TrainEngineOptions two_micro_batches(DType compute) {
  TrainEngineOptions options;
  options.micro_batch = 2;
  options.sequence_length = kLength;
  options.micro_batches = 2;
  options.balance_loss = true;
  options.compute = compute;
  return options;
}

/// Of weights, gradients and moments.
bool same_states(const Training& a, const Training& b) {
  const std::vector<StateSpec>& specs = a.states->specs();
  return specs.size() == b.states->specs().size() &&
         std::all_of(specs.begin(), specs.end(), [&](const StateSpec& spec) {
           return test::same_bytes(copy_to_host(a.states->device(), a.states->at(spec.name)),
                                   copy_to_host(b.states->device(), b.states->at(spec.name)));
         });
}

std::shared_ptr<Device> make_device(bool gpu) {
  return gpu ? make_pretended_gpu() : make_rounded_device();
}

TEST_CASE("steps on a device with memory of its own give the bits of steps in the host's memory") {
  const bool gpu = GENERATE(false, true);
  CAPTURE(gpu);
  Training here("deepseek_v2", FarSkipMode::full, make_cpu_device(), two_micro_batches(DType::f32));
  Training there("deepseek_v2", FarSkipMode::full, make_device(gpu), two_micro_batches(DType::f32));
  for (std::int64_t step = 0; step < 5; ++step) {  // launched, recorded, replayed
    const StepResult a = here.step(step), b = there.step(step);
    CHECK(a.loss.loss_sum == b.loss.loss_sum);
    CHECK(a.loss.balance_loss == b.loss.balance_loss);
    CHECK(a.loss.num_correct == b.loss.num_correct);
    CHECK(a.loss.expert_rows == b.loss.expert_rows);
    CHECK(a.grad_norm == b.grad_norm);
  }
  CHECK(same_states(here, there));
}

TEST_CASE("a step in one piece is the gradients and then the update") {
  Training whole("qwen3_moe", FarSkipMode::off, make_rounded_device(), two_micro_batches(DType::f32));
  Training parts("qwen3_moe", FarSkipMode::off, make_rounded_device(), two_micro_batches(DType::f32));
  for (std::int64_t step = 0; step < 2; ++step) {
    const StepResult a = whole.step(step);
    const BatchLoss loss = parts.engine->compute_gradients(parts.batches(step), parts.scale(), 1e-3F);
    CHECK(a.loss.loss_sum == loss.loss_sum);
    CHECK(a.grad_norm == parts.engine->update(1e-3, step + 1));
  }
}

TEST_CASE("moments that were put on the device are what the next update continues from") {
  Training first("qwen3_moe", FarSkipMode::off, make_rounded_device(), two_micro_batches(DType::f32));
  first.step(0);
  Training resumed("qwen3_moe", FarSkipMode::off, make_rounded_device(), two_micro_batches(DType::f32));
  write_states(*resumed.states, read_states(*first.states, Role::weight), Role::weight);
  for (const std::string_view kind : {kFirstMoment, kSecondMoment}) {
    const TensorMap moments = read_states(*first.states, Role::optimizer, kind);
    REQUIRE(moments.size() == first.specs.size());
    write_states(*resumed.states, moments, Role::optimizer, kind);
  }
  CHECK(first.step(1).grad_norm == resumed.step(1).grad_norm);
  CHECK(same_states(first, resumed));
}

TEST_CASE("inference on a device reads the weights that training left there") {
  const bool gpu = GENERATE(false, true);
  Training there("deepseek_v2", FarSkipMode::full, make_device(gpu), two_micro_batches(DType::f32));
  InferenceEngine shared(there.model, there.states, there.context);
  there.step(0);
  const Batch batch = there.batches(7)[0];
  const double loss = shared.loss(batch, kLength).loss_sum;
  const HostTensor logits = [&] {
    const TensorView view = shared.logits(batch.tokens, kLength);
    HostTensor copy(view.dtype, view.shape);
    std::copy(view.bytes().begin(), view.bytes().end(), copy.bytes().begin());
    return copy;
  }();
  const auto weights = test::make_weights(whole_parameters(there.specs));
  write_states(*weights, read_states(*there.states, Role::weight), Role::weight);
  InferenceEngine here(there.model, weights, test::quiet_context());
  CHECK(here.loss(batch, kLength).loss_sum == loss);
  CHECK(relative_error(here.logits(batch.tokens, kLength), logits.view()) == 0.0);
}

TEST_CASE("choices are as likely on a device with memory of its own as in the host's memory, to the bit") {
  const Training here("deepseek_v2", FarSkipMode::full, make_cpu_device(), two_micro_batches(DType::f32));
  const Training there("deepseek_v2", FarSkipMode::full, make_rounded_device(),
                       two_micro_batches(DType::f32));
  const std::vector<std::int32_t> ids = here.batches(0)[0].tokens;  // 32
  const std::vector<std::int32_t> context(ids.begin(), ids.begin() + 20);
  const std::vector<Continuation> choices{
      {context, {1, 2, 3}}, {context, {1, 5}}, {{7}, ids}, {context, {9}}};
  CHECK(log_likelihoods(there.model, there.states, there.context, choices, 3) ==
        log_likelihoods(here.model, here.states, here.context, choices, 3));
}

TEST_CASE("gradients computed in bf16 are those of f32 but for rounding") {
  const std::string name = GENERATE(from_range(test::model_fixtures()));
  const auto mode = GENERATE(FarSkipMode::off, FarSkipMode::full);
  CAPTURE(name);
  Training wide(name, mode, make_cpu_device(), two_micro_batches(DType::f32));
  Training low(name, mode, make_rounded_device(), two_micro_batches(DType::bf16));
  const BatchLoss a = wide.compute_gradients(), b = low.compute_gradients();
  CHECK(b.loss_sum == Catch::Approx(a.loss_sum).epsilon(2e-3));
  CHECK(b.balance_loss == Catch::Approx(a.balance_loss).epsilon(2e-2));
  CHECK(b.loss_sum != a.loss_sum);
  const TensorMap want = wide.gradients(), got = low.gradients();
  std::vector<double> errors;
  for (const auto& [parameter, tensor] : want) {
    CAPTURE(parameter);
    errors.push_back(relative_error(got.at(parameter).view(), tensor.view()));
    CHECK(errors.back() < (test::depends_on_routing(parameter) ? 0.8
                           : test::nearly_cancels(parameter)   ? 0.5
                                                               : 0.15));
  }
  std::sort(errors.begin(), errors.end());
  CHECK(errors[errors.size() / 2] < 0.05);
}

TEST_CASE("training in bf16 goes the way of f32, and its compute copies follow the weights") {
  const auto* name = GENERATE("deepseek_v2", "qwen3_moe_tied");
  CAPTURE(name);
  Training wide(name, FarSkipMode::full, make_cpu_device(), two_micro_batches(DType::f32));
  Training low(name, FarSkipMode::full, make_pretended_gpu(), two_micro_batches(DType::bf16));
  for (std::int64_t step = 0; step < 6; ++step) {
    const StepResult a = wide.step(step), b = low.step(step);
    CAPTURE(step);
    CHECK(b.loss.loss_sum == Catch::Approx(a.loss.loss_sum).epsilon(5e-3));
    CHECK(b.grad_norm == Catch::Approx(a.grad_norm).epsilon(0.05));
  }
  const TensorMap weights = read_states(*low.states, Role::weight);
  for (const ParameterSpec& spec : low.specs) {
    CAPTURE(spec.name);
    const std::string name_of_copy = compute_copy_name(spec.name);
    REQUIRE(low.states->contains(name_of_copy) == spec.has_compute_copy());
    if (!spec.has_compute_copy()) continue;
    const HostTensor kept = copy_to_host(low.states->device(), low.states->at(name_of_copy));
    const TensorView copy = kept.view(), whole = weights.at(spec.name).view();
    bool equal = true;
    for (std::int64_t i = 0; i < whole.num_elements(); ++i)
      equal = equal && copy.as<std::uint16_t>()[i] == f32_to_bf16(whole.as<float>()[i]);
    CHECK(equal);
  }
}

TEST_CASE("observed steps are launched kernel by kernel and give the bits of replayed ones") {
  Training plain("qwen3_moe", FarSkipMode::off, make_pretended_gpu(), two_micro_batches(DType::bf16));
  Training observed("qwen3_moe", FarSkipMode::off, make_pretended_gpu(), two_micro_batches(DType::bf16));
  std::size_t num_times = 0;
  for (std::int64_t step = 0; step < 5; ++step) {
    if (step % 2 == 1)
      observed.engine->observe([&](const Executor& executor, const std::vector<StepTime>& times) {
        CHECK(times.size() == executor.plan().steps.size());
        num_times += times.size();
      });
    else
      observed.engine->observe({});
    const StepResult a = plain.step(step), b = observed.step(step);
    CHECK(a.loss.loss_sum == b.loss.loss_sum);
    CHECK(a.grad_norm == b.grad_norm);
  }
  CHECK(num_times > 0);
}

TEST_CASE("work is recorded again when an external is bound to another place") {
  const std::shared_ptr<Device> device = make_pretended_gpu();
  Graph graph;
  const TensorType type{DType::f32, Shape{4}, {}};
  const ValueId x = graph.add_external(ExternalKind::input, "x", type);
  Builder b{graph, {}};
  graph.add_output("y", ops::add(b, x, x));
  Arena arena(device);
  Plan plan = make_serial_plan(graph, workspace_rule(*device));
  Executor executor(std::move(graph), std::move(plan), device->kernels(), arena);
  const std::vector<float> ones(4, 1.0F), twos(4, 2.0F), threes(4, 3.0F);
  const DeviceBuffer first = allocate_on(*device, 16), second = allocate_on(*device, 16);
  const auto result = [&] {
    executor.run();
    return executor.read_output("y").values<float>()[3];
  };
  device->copy_in(first.memory.get(), ones.data(), 16);
  device->copy_in(second.memory.get(), threes.data(), 16);
  executor.bind("x", {first.memory.get(), DType::f32, Shape{4}});
  for (int run = 0; run < 3; ++run) CHECK(result() == 2.0F);
  device->copy_in(first.memory.get(), twos.data(), 16);
  CHECK(result() == 4.0F);
  executor.bind("x", {second.memory.get(), DType::f32, Shape{4}});
  for (int run = 0; run < 3; ++run) CHECK(result() == 6.0F);
  arena.reserve(std::size_t{1} << 20);  // moves
  for (int run = 0; run < 2; ++run) CHECK(result() == 6.0F);
}

TEST_CASE("emulated ranks ask for a GPU and for experts that can be dealt out") {
  CHECK_THROWS_WITH(make_emulated_mesh(8, {.expert = 8}, 1.0, *make_cpu_device()),
                    ContainsSubstring("need a GPU"));
  CHECK_THROWS_WITH(make_emulated_mesh(8, {.expert = 3}, 1.0, *make_pretended_gpu()),
                    ContainsSubstring("divide"));
}

TEST_CASE("kernels of the CPU repeat their bits whether they must or not") {
  RunConfig config;
  CHECK(engine_options(config, 1).deterministic);
  config.deterministic = false;
  CHECK_FALSE(engine_options(config, 1).deterministic);
  TrainEngineOptions must = two_micro_batches(DType::f32), may = must;
  may.deterministic = false;
  Training a("deepseek_v2", FarSkipMode::full, make_cpu_device(), must);
  Training b("deepseek_v2", FarSkipMode::full, make_cpu_device(), may);
  CHECK(a.compute_gradients().loss_sum == b.compute_gradients().loss_sum);
  CHECK(same_states(a, b));
  CHECK(repeats_bits(*make_cpu_device(), DType::f32, false));
  CHECK(repeats_bits(*make_pretended_gpu(), DType::bf16, true));
  CHECK_FALSE(repeats_bits(*make_pretended_gpu(), DType::bf16, false));
}

TEST_CASE("a bf16 run on the CPU is refused with what to do") {
  CHECK_THROWS_WITH(open_device(DeviceChoice::cpu, Precision::bf16),
                    ContainsSubstring("precision: the CPU computes in fp32; use fp32, or device cuda"));
  CHECK(open_device(DeviceChoice::cpu, Precision::fp32)->name() == "cpu");
}

TEST_CASE("a GPU where there is none is refused with what to do") {
  if (why_no_cuda_device().empty()) test::skip("there is a GPU");
  CHECK_THROWS_AS(open_device(DeviceChoice::cuda, Precision::fp32), UsageError);
  CHECK_THROWS_WITH(open_device(DeviceChoice::automatic, Precision::bf16),
                    ContainsSubstring("precision: bf16 needs a GPU"));
  CHECK(open_device(DeviceChoice::automatic, Precision::fp32)->name() == "cpu");
}

}  // namespace
}  // namespace farskip
