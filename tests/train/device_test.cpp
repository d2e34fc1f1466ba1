// Engines on a device whose memory the host cannot touch, and computation in bf16, on the CPU
// (tests/reference/rounded.h).
#include <algorithm>
#include <cmath>

#include "farskip/passes/farskip.h"
#include "farskip/train/devices.h"
#include "farskip/train/measure.h"
#include "farskip/train/trainer.h"
#include "reference/rounded.h"
#include "support/catch.h"
#include "support/support.h"

namespace farskip {
namespace {

const Logger kQuiet(LogLevel::off);
constexpr std::int64_t kLength = 16, kSequences = 2;

/// An engine over weights of a fixture, which come to the device only by upload_weights().
struct Training {
  Training(const std::string& name, FarSkipMode mode, const std::shared_ptr<Device>& device,
           TrainEngineOptions options)
      : config(read_hub_config(test::fixtures() / name)),
        specs(list_parameters(config)),
        weights(make_parameter_tensors(specs)),
        layers(rewire_farskip(build_layer_graph(config), {mode, {}})),
        arena(device) {
    options.micro_batch = kSequences;
    options.sequence_length = kLength;
    options.optimizer.weight_decay = 0.1;
    load_weights(weights, whole_parameters(specs), specs, SafetensorsFolder(test::fixtures() / name));
    engine = std::make_unique<TrainEngine>(config, layers, weights, options, arena, kQuiet);
    engine->upload_weights();
  }

  std::vector<Batch> batches(std::int64_t step) const {
    std::vector<Batch> out;
    for (std::int64_t i = 0; i < 2; ++i)
      out.push_back(
          random_batch(3, static_cast<std::uint64_t>(2 * step + i), kSequences * kLength, config.vocab_size));
    return out;
  }

  StepResult step(std::int64_t number) {
    return engine->step(batches(number), 1.0F / (2 * kSequences * kLength), 1e-3F, 1e-3, number + 1);
  }

  ModelConfig config;
  std::vector<ParameterSpec> specs;
  TensorMap weights;
  LayerGraph layers;
  Arena arena;
  std::unique_ptr<TrainEngine> engine;
};

TrainEngineOptions two_micro_batches(DType compute) {
  TrainEngineOptions options;
  options.micro_batches = 2;
  options.balance_loss = true;
  options.compute = compute;
  return options;
}

bool same_bits(const TensorMap& a, const TensorMap& b) {
  for (const auto& [name, tensor] : a) {
    const auto other = b.at(name).bytes();
    if (!std::equal(tensor.bytes().begin(), tensor.bytes().end(), other.begin(), other.end())) return false;
  }
  return a.size() == b.size();
}

double relative_error(const TensorView& got, const TensorView& want) {
  double difference = 0, norm = 0;
  for (std::int64_t i = 0; i < want.num_elements(); ++i) {
    difference += std::pow(static_cast<double>(got.as<float>()[i]) - want.as<float>()[i], 2);
    norm += std::pow(static_cast<double>(want.as<float>()[i]), 2);
  }
  return std::sqrt(difference / norm);
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
  CHECK(!same_bits(here.weights, there.weights));  // still those from the file
  there.engine->download_state();
  CHECK(same_bits(here.weights, there.weights));
  CHECK(same_bits(here.engine->gradients(), there.engine->gradients()));
  CHECK(same_bits(here.engine->first_moments(), there.engine->first_moments()));
  CHECK(same_bits(here.engine->second_moments(), there.engine->second_moments()));
}

TEST_CASE("a step in one piece is the gradients and then the update") {
  Training whole("qwen3_moe", FarSkipMode::off, make_rounded_device(), two_micro_batches(DType::f32));
  Training parts("qwen3_moe", FarSkipMode::off, make_rounded_device(), two_micro_batches(DType::f32));
  for (std::int64_t step = 0; step < 2; ++step) {
    const StepResult a = whole.step(step);
    const BatchLoss loss =
        parts.engine->compute_gradients(parts.batches(step), 1.0F / (2 * kSequences * kLength), 1e-3F);
    CHECK(a.loss.loss_sum == loss.loss_sum);
    CHECK(a.grad_norm == parts.engine->update(1e-3, step + 1));
  }
}

TEST_CASE("moments that were put on the device are what the next update continues from") {
  Training first("qwen3_moe", FarSkipMode::off, make_rounded_device(), two_micro_batches(DType::f32));
  first.step(0);
  first.engine->download_state();
  Training resumed("qwen3_moe", FarSkipMode::off, make_rounded_device(), two_micro_batches(DType::f32));
  const auto copy = [](const TensorMap& from, TensorMap& to) {
    for (const auto& [name, tensor] : from)
      std::copy(tensor.bytes().begin(), tensor.bytes().end(), to.at(name).bytes().begin());
  };
  copy(first.weights, resumed.weights);
  copy(first.engine->first_moments(), resumed.engine->first_moments());
  copy(first.engine->second_moments(), resumed.engine->second_moments());
  resumed.engine->upload_weights();
  resumed.engine->upload_moments();
  CHECK(first.step(1).grad_norm == resumed.step(1).grad_norm);
  first.engine->download_state();
  resumed.engine->download_state();
  CHECK(same_bits(first.weights, resumed.weights));
  CHECK(same_bits(first.engine->second_moments(), resumed.engine->second_moments()));
}

TEST_CASE("inference on a device reads the weights that training left there") {
  const bool gpu = GENERATE(false, true);
  Training there("deepseek_v2", FarSkipMode::full, make_device(gpu), two_micro_batches(DType::f32));
  InferenceEngine shared(there.config, there.layers, there.engine->weights(), there.arena, kQuiet);
  there.step(0);
  const Batch batch = there.batches(7)[0];
  const double loss = shared.loss(batch, kLength).loss_sum;
  const HostTensor logits = [&] {
    const TensorView view = shared.logits(batch.tokens, kLength);
    HostTensor copy(view.dtype, view.shape);
    std::copy(view.bytes().begin(), view.bytes().end(), copy.bytes().begin());
    return copy;
  }();
  there.engine->download_state();
  Arena arena;
  InferenceEngine here(there.config, there.layers, there.weights, arena, kQuiet);
  CHECK(here.loss(batch, kLength).loss_sum == loss);
  CHECK(relative_error(here.logits(batch.tokens, kLength), logits.view()) == 0.0);
}

TEST_CASE("gradients computed in bf16 are those of f32 but for rounding") {
  const auto* name = GENERATE("deepseek_v2", "deepseek_v2_yarn", "qwen3_moe", "qwen3_moe_tied");
  const auto mode = GENERATE(FarSkipMode::off, FarSkipMode::full);
  CAPTURE(name);
  Training wide(name, mode, make_cpu_device(), two_micro_batches(DType::f32));
  Training low(name, mode, make_rounded_device(), two_micro_batches(DType::bf16));
  const float scale = 1.0F / (2 * kSequences * kLength);
  const BatchLoss a = wide.engine->compute_gradients(wide.batches(0), scale, 1e-3F);
  const BatchLoss b = low.engine->compute_gradients(low.batches(0), scale, 1e-3F);
  CHECK(b.loss_sum == Catch::Approx(a.loss_sum).epsilon(2e-3));
  CHECK(b.balance_loss == Catch::Approx(a.balance_loss).epsilon(2e-2));
  CHECK(b.loss_sum != a.loss_sum);
  const TensorMap &want = wide.engine->gradients(), &got = low.engine->gradients();
  std::vector<double> errors;
  for (const auto& [parameter, tensor] : want) {
    CAPTURE(parameter);
    // Rounding moves a few of the 64 tokens to other experts. What these experts, the router and the norm
    // before it get from such a token then changes as a whole.
    const bool routed = parameter.find("mlp.experts") != std::string::npos ||
                        parameter.find("mlp.gate") != std::string::npos ||
                        parameter.find("post_attention_layernorm") != std::string::npos;
    errors.push_back(relative_error(got.at(parameter).view(), tensor.view()));
    CHECK(errors.back() < (routed ? 0.8 : 0.15));
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
  low.engine->download_state();
  const auto weights = low.engine->weights();
  for (const ParameterSpec& spec : low.specs) {
    CAPTURE(spec.name);
    const TensorView copy = weights->copy_of(spec.name), whole = low.weights.at(spec.name).view();
    REQUIRE(static_cast<bool>(copy) == spec.has_compute_copy());
    if (!copy) continue;
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

TEST_CASE("several ranks on a GPU are refused") {
  CHECK_NOTHROW(refuse_ranks_on_gpu(*make_cpu_device(), 4));
  CHECK_NOTHROW(refuse_ranks_on_gpu(*make_pretended_gpu(), 1));
  CHECK_THROWS_WITH(refuse_ranks_on_gpu(*make_pretended_gpu(), 2), ContainsSubstring("one rank"));
}

TEST_CASE("a bf16 run on the CPU, and a GPU where there is none, are refused with what to do") {
  CHECK_THROWS_WITH(open_device(DeviceChoice::cpu, Precision::bf16),
                    ContainsSubstring("precision: the CPU computes in fp32; use fp32, or device cuda"));
  CHECK(open_device(DeviceChoice::cpu, Precision::fp32)->name() == "cpu");
  if (why_no_cuda_device().empty()) return;
  CHECK_THROWS_AS(open_device(DeviceChoice::cuda, Precision::fp32), UsageError);
  CHECK_THROWS_WITH(open_device(DeviceChoice::automatic, Precision::bf16),
                    ContainsSubstring("precision: bf16 needs a GPU"));
  CHECK(open_device(DeviceChoice::automatic, Precision::fp32)->name() == "cpu");
}

}  // namespace
}  // namespace farskip
