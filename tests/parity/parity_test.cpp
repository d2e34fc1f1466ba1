// SPDX-License-Identifier: Apache-2.0
// Whole models against values from independent public implementations (scripts/reference).

#include "data/token_file.h"
#include "farskip/engine/engine.h"
#include "hub/upcycle.h"
#include "passes/farskip.h"
#include "run/learning_rate.h"
#include "support/catch.h"
#include "support/context.h"
#include "support/json.h"
#include "support/models.h"
#include "support/states.h"
#include "support/support.h"

namespace farskip {
namespace {

struct Reference {
  explicit Reference(const std::string& name)
      : folder(test::fixtures() / name),
        config(read_hub_config(folder)),
        specs(list_parameters(config)),
        values(folder / "reference.safetensors"),
        numbers(test::parse_json(read_text_file(folder / "reference.json"))) {}

  std::shared_ptr<States> weights() const { return test::load_weights(folder); }
  // tokens [B, S]; targets are the next tokens, none for the last of a sequence
  Batch batch() const {
    const HostTensor tokens = values.read("tokens");
    const std::int64_t s = tokens.shape()[1];
    Batch b;
    for (const std::int32_t id : tokens.values<std::int32_t>()) b.tokens.push_back(id);
    for (std::size_t i = 0; i < b.tokens.size(); ++i)
      b.targets.push_back(static_cast<std::int64_t>(i) % s == s - 1 ? -1 : b.tokens[i + 1]);
    return b;
  }
  std::int64_t sequence_length() const { return values.find("tokens").shape[1]; }

  fs::path folder;
  ModelConfig config;
  std::vector<ParameterSpec> specs;
  SafetensorsFile values;
  nlohmann::json numbers;
};

double relative_error(std::span<const float> got, std::span<const float> want) {
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    difference += std::pow(static_cast<double>(got[i]) - want[i], 2);
    norm += std::pow(static_cast<double>(want[i]), 2);
  }
  return std::sqrt(difference / norm);
}

FarSkipConfig parse_wiring(const std::string& mode) {
  if (mode == "off") return {FarSkipMode::off, {}};
  if (mode == "attention") return {FarSkipMode::attention, {}};
  if (mode == "mlp") return {FarSkipMode::mlp, {}};
  FarSkipConfig wiring{FarSkipMode::full, {}};
  if (mode.starts_with("full_"))
    wiring.layers = {LayerSelection::Kind::range, mode[5] - '0', mode[7] - '0', {}};
  return wiring;
}

std::vector<std::string> modes(const Reference& r) {
  std::vector<std::string> out;
  for (const TensorInfo& t : r.values.tensors())
    if (t.name.starts_with("logits.")) out.push_back(t.name.substr(7));
  return out;
}

TEST_CASE("logits and losses equal the reference for every wiring") {
  const Reference r(GENERATE(from_range(test::model_fixtures())));
  REQUIRE(modes(r).size() >= 6);
  const Batch batch = r.batch();
  const double counted = static_cast<double>(
      std::count_if(batch.targets.begin(), batch.targets.end(), [](int t) { return t >= 0; }));
  for (const std::string& mode : modes(r)) {
    CAPTURE(r.folder, mode);
    InferenceEngine engine(wire_model(r.config, parse_wiring(mode)), r.weights(), test::quiet_context());
    const TensorView logits = engine.logits(batch.tokens, r.sequence_length());
    const HostTensor want = r.values.read("logits." + mode);
    CHECK(relative_error({logits.as<float>(), want.values<float>().size()}, want.values<float>()) < 2e-5);
    const double loss = engine.loss(batch, r.sequence_length()).loss_sum / counted;
    CHECK(loss == Catch::Approx(r.numbers["loss." + mode].get<double>()).epsilon(2e-6));
  }
}

TEST_CASE("a dense model of equal experts computes the dense model's logits in every wiring") {
  const Reference r(GENERATE("llama", "llama_tied", "qwen3"));
  const Upcycling how{.num_experts = 5, .top_k = GENERATE(1, 3, 5)};
  const ModelConfig config = upcycle_config(r.config, how);
  const auto dense = r.weights();
  const auto weights =
      test::make_weights(config, upcycle_rows(list_parameters(r.config), rows_of(*dense), config, how));
  const Batch batch = r.batch();
  for (const std::string& mode : modes(r)) {
    CAPTURE(r.folder, mode, how.top_k);
    InferenceEngine engine(wire_model(config, parse_wiring(mode)), weights, test::quiet_context());
    const TensorView logits = engine.logits(batch.tokens, r.sequence_length());
    const HostTensor want = r.values.read("logits." + mode);
    CHECK(relative_error({logits.as<float>(), want.values<float>().size()}, want.values<float>()) < 2e-5);
  }
}

TEST_CASE("every parameter's gradient equals the reference") {
  const Reference r(GENERATE(from_range(test::model_fixtures())));
  const std::string mode = GENERATE(as<std::string>(), "off", "full");
  CAPTURE(r.folder, mode);
  const fs::path gradients = r.folder / ("grads." + mode + ".safetensors");
  if (mode == "off" && !fs::exists(gradients)) return;  // those of `full` hold every gradient rule as well
  const Batch batch = r.batch();
  TrainEngineOptions options;
  options.sequence_length = r.sequence_length();
  options.micro_batch = static_cast<std::int64_t>(batch.tokens.size()) / options.sequence_length;
  TrainEngine engine(wire_model(r.config, parse_wiring(mode)), r.weights(), options, test::quiet_context());
  const auto counted = options.micro_batch * (options.sequence_length - 1);
  engine.compute_gradients(std::span(&batch, 1), 1.0F / static_cast<float>(counted), 0.0F);

  const SafetensorsFile want(gradients);
  std::map<std::string, HostTensor> pieces;
  for (const HubSource& source : hub_sources(*engine.states(), Role::gradient))
    pieces.emplace(source.name, read_source(source));
  const TensorMap gradients_here = read_states(*engine.states(), Role::gradient);
  std::size_t compared = 0;
  auto compare = [&](const std::string& name, const TensorView& got) {
    CAPTURE(name);
    const HostTensor reference = want.read(name);
    CHECK(relative_error({got.as<float>(), reference.values<float>().size()}, reference.values<float>()) <
          1e-4);
    ++compared;
  };
  for (const TensorInfo& info : want.tensors()) {
    if (const auto it = gradients_here.find(info.name); it != gradients_here.end())
      compare(info.name, it->second.view());  // packed experts
    else
      compare(info.name, pieces.at(info.name).view());
  }
  CHECK(compared == want.tensors().size());
}

TEST_CASE("twenty steps of an optimizer follow the reference's losses and gradient norms") {
  const Reference r(GENERATE("deepseek_v2", "qwen3_moe"));
  const std::string mode = GENERATE(as<std::string>(), "off", "full");
  const OptimizerName rule = GENERATE(OptimizerName::adamw, OptimizerName::muon);
  const std::int64_t micro_batch = GENERATE(4, 2);  // in one piece, and accumulated
  const std::string name(name_of(optimizer_names, rule));
  CAPTURE(r.folder, mode, name, micro_batch);
  constexpr std::int64_t kSequence = 32, kBatch = 4;
  TrainEngineOptions options;
  options.sequence_length = kSequence;
  options.micro_batch = micro_batch;
  options.micro_batches = kBatch / micro_batch;
  options.optimizer = {
      .name = rule, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1, .clip_grad_norm = 1.0};
  TrainEngine engine(wire_model(r.config, parse_wiring(mode)), r.weights(), options, test::quiet_context());
  const TokenFile tokens((r.folder / "tokens").string());
  std::int64_t sample = 0;
  for (std::int64_t step = 0; step < 20; ++step) {
    std::vector<Batch> batches;
    for (std::int64_t m = 0; m < kBatch / micro_batch; ++m) {
      Batch batch;
      for (std::int64_t i = 0; i < micro_batch; ++i, ++sample) {
        std::vector<std::int32_t> ids(kSequence + 1);
        tokens.read(static_cast<std::uint64_t>(sample * kSequence), kSequence + 1, ids.data());
        batch.tokens.insert(batch.tokens.end(), ids.begin(), ids.end() - 1);
        batch.targets.insert(batch.targets.end(), ids.begin() + 1, ids.end());
      }
      batches.push_back(std::move(batch));
    }
    const double loss =
        engine.compute_gradients(batches, 1.0F / (kBatch * kSequence), 0.0F).loss_sum / (kBatch * kSequence);
    const float norm = engine.update(1e-3, step + 1);
    CAPTURE(step);
    CHECK(loss == Catch::Approx(r.numbers[name + "_losses." + mode][step].get<double>()).epsilon(1e-4));
    CHECK(norm == Catch::Approx(r.numbers[name + "_grad_norms." + mode][step].get<double>()).epsilon(1e-4));
  }
}

}  // namespace
}  // namespace farskip
