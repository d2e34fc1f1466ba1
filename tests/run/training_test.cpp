// SPDX-License-Identifier: Apache-2.0
// Training runs as a whole: resume, accumulation, metrics, faults.

#include <omp.h>

#include <csignal>
#include <thread>

#include "base/environment.h"
#include "checkpoint/checkpoint_files.h"
#include "farskip/config/run_config.h"
#include "reference/rounded.h"
#include "run/learning_rate.h"
#include "run/run_folder.h"
#include "run/trainer.h"
#include "support/catch.h"
#include "support/context.h"
#include "support/json.h"
#include "support/run_files.h"
#include "support/small_run.h"
#include "support/states.h"

namespace farskip {
namespace {

using test::checkpoint_bytes, test::make_small_run, test::read_metrics, test::SmallRunKind;
using Run = test::SmallRun;

Run make_run(const fs::path& run_dir, const std::vector<std::string>& overrides = {}) {
  return make_small_run(run_dir, SmallRunKind::train, overrides);
}

const Logger kQuiet(LogLevel::off);

TrainResult train(const RunConfig& config, const ModelConfig& model, const Logger& logger,
                  std::shared_ptr<Device> device = nullptr) {
  Heartbeat heartbeat;
  return train(config, model, make_self_communicator(), heartbeat, logger, std::move(device));
}

TEST_CASE("a run on a device with memory of its own leaves the checkpoints of a run in the host's") {
  const test::TemporaryFolder folder;
  const Run here = make_run(folder / "here"), there = make_run(folder / "there");
  const TrainResult a = train(here.config, here.model, kQuiet);
  const TrainResult b = train(there.config, there.model, kQuiet, make_rounded_device());
  CHECK(a.loss == b.loss);
  CHECK(a.validation_loss == b.validation_loss);
  for (const int step : {2, 4, 6})
    CHECK(checkpoint_bytes(folder / "here", step) == checkpoint_bytes(folder / "there", step));
}

TEST_CASE("a resumed run in bf16 gives the bytes of one in one piece") {
  const test::TemporaryFolder folder;
  const Run whole = make_run(folder / "whole", {"precision=bf16"});
  const TrainResult low = train(whole.config, whole.model, kQuiet, make_pretended_gpu());
  const Run parts = make_run(folder / "parts", {"precision=bf16"});
  train(parts.config, parts.model, kQuiet, make_rounded_device());
  fs::remove_all(folder / "parts" / "checkpoints" / "step-6");
  CHECK(train(parts.config, parts.model, kQuiet, make_rounded_device()).step == 6);
  CHECK(checkpoint_bytes(folder / "whole", 6) == checkpoint_bytes(folder / "parts", 6));
  const Run wide = make_run(folder / "wide");
  const TrainResult f32 = train(wide.config, wide.model, kQuiet);
  CHECK(checkpoint_bytes(folder / "whole", 6) != checkpoint_bytes(folder / "wide", 6));
  CHECK(*low.loss == Catch::Approx(*f32.loss).epsilon(5e-3));
  CHECK(*low.validation_loss == Catch::Approx(*f32.validation_loss).epsilon(5e-3));
}

/// A tensor of a checkpoint.
std::vector<float> tensor_of(const fs::path& run_dir, int step, const std::string& name) {
  const HostTensor tensor = open_checkpoint(test::checkpoint_folder(run_dir, step)).read(name);
  return {tensor.values<float>().begin(), tensor.values<float>().end()};
}

TEST_CASE("averaged weights are evaluated and saved, and training does not see them") {
  const test::TemporaryFolder folder;
  const auto run = [&](const char* name, std::vector<std::string> overrides) {
    overrides.emplace_back("checkpoint.every=1");
    const Run one = make_run(folder / name, overrides);
    return train(one.config, one.model, kQuiet);
  };
  run("plain", {});
  const TrainResult averaged = run("averaged", {"train.average_decay=0.6"});
  const auto a = read_metrics(folder / "plain"), b = read_metrics(folder / "averaged");
  for (std::size_t i = 0; i < 6; ++i) {
    CHECK(a[i]["loss"] == b[i]["loss"]);
    CHECK(a[i]["grad_norm"] == b[i]["grad_norm"]);
  }
  CHECK(a[5]["validation_loss"] != b[5]["validation_loss"]);
  for (const std::string name : {"model.embed_tokens.weight", "model.layers.1.mlp.experts.2.up_proj.weight",
                                 "model.layers.0.input_layernorm.weight"}) {
    INFO(name);
    std::vector<double> average(tensor_of(folder / "plain", 1, name).size(), 0.0);
    for (int step = 1; step <= 6; ++step) {
      const std::vector<float> now = tensor_of(folder / "plain", step, name);
      CHECK(tensor_of(folder / "averaged", step, "averaging." + name) == now);
      const double share = std::max(0.4, 1.0 / step);
      for (std::size_t i = 0; i < now.size(); ++i) average[i] += share * (now[i] - average[i]);
      const std::vector<float> saved = tensor_of(folder / "averaged", step, name);
      for (std::size_t i = 0; i < now.size(); ++i) CHECK(saved[i] == Catch::Approx(average[i]).margin(1e-6));
    }
  }
  // A run that begins with the model of the checkpoint, and moves nothing, evaluates the same weights.
  const TrainResult model =
      run("model",
          {"init.from=" + test::checkpoint_folder(folder / "averaged", 6).string(), "train.steps=1",
           "train.validate_every=1", "train.learning_rate.peak=1e-30", "train.learning_rate.final=1e-30"});
  CHECK(*model.validation_loss == *averaged.validation_loss);
}

TEST_CASE("a run with averaged weights that is resumed gives the bytes of one in one piece") {
  const test::TemporaryFolder folder;
  for (const std::string precision : {"fp32", "bf16"}) {
    const auto run = [&](const std::string& name) {
      const Run one =
          make_run(folder / (precision + name), {"precision=" + precision, "train.average_decay=0.6"});
      return train(one.config, one.model, kQuiet, make_rounded_device());
    };
    run("whole");
    run("parts");
    fs::remove_all(folder / (precision + "parts") / "checkpoints" / "step-6");
    fs::remove_all(folder / (precision + "parts") / "checkpoints" / "step-4");
    CHECK(run("parts").step == 6);
    CHECK(checkpoint_bytes(folder / (precision + "whole"), 6) ==
          checkpoint_bytes(folder / (precision + "parts"), 6));
  }
  const Run without = make_run(folder / "fp32parts");
  CHECK_THROWS_WITH(train(without.config, without.model, kQuiet),
                    ContainsSubstring("train.average_decay: checkpoint 0.6, now 0"));
}

TEST_CASE("training in two halves gives the bytes of training in one piece") {
  const test::TemporaryFolder folder;
  const Run whole = make_run(folder / "whole", {"checkpoint.async=false"});
  train(whole.config, whole.model, kQuiet);
  // The second half is a run of its own over the same directory: as after a kill at step 4.
  const Run first = make_run(folder / "halves");
  train(first.config, first.model, kQuiet);
  fs::remove_all(folder / "halves" / "checkpoints" / "step-6");
  const TrainResult result = train(first.config, first.model, kQuiet);
  CHECK(result.step == 6);
  CHECK(checkpoint_bytes(folder / "whole", 6) == checkpoint_bytes(folder / "halves", 6));
  const auto a = read_metrics(folder / "whole"), b = read_metrics(folder / "halves");
  REQUIRE(a.size() == 6);
  REQUIRE(b.size() == 6);
  for (std::size_t i = 0; i < 6; ++i) {
    CHECK(b[i]["step"] == i + 1);
    CHECK(a[i]["loss"] == b[i]["loss"]);
  }
}

TEST_CASE("two runs of one configuration are bit-identical, another seed is not") {
  const test::TemporaryFolder folder;
  for (const char* name : {"a", "b"}) {
    const Run run = make_run(folder / name);
    train(run.config, run.model, kQuiet);
  }
  CHECK(checkpoint_bytes(folder / "a", 6) == checkpoint_bytes(folder / "b", 6));
  const Run other = make_run(folder / "c", {"seed=2"});
  train(other.config, other.model, kQuiet);
  CHECK(checkpoint_bytes(folder / "a", 6) != checkpoint_bytes(folder / "c", 6));
}

TEST_CASE("recomputation that is chosen for a memory changes no bit, and too little memory is refused") {
  const test::TemporaryFolder folder;
  const auto run = [&](const char* name, const std::vector<std::string>& overrides) {
    const Run one = make_run(folder / name, overrides);
    train(one.config, one.model, kQuiet);
  };
  run("none", {});
  std::string least;  // as the refusal says
  try {
    run("refused", {"schedule.recompute=auto", "schedule.memory=1MiB"});
  } catch (const UsageError& error) {
    const std::string text = error.what();
    const std::size_t at = text.find("allow ");
    REQUIRE(at != std::string::npos);
    least = text.substr(at + 6, text.find(' ', at + 6) - at - 6);
  }
  REQUIRE_FALSE(least.empty());
  run("least", {"schedule.recompute=auto", "schedule.memory=" + least + "B"});
  CHECK(checkpoint_bytes(folder / "none", 6) == checkpoint_bytes(folder / "least", 6));
}

TEST_CASE("micro-batches of any size give the same losses up to rounding") {
  const test::TemporaryFolder folder;
  for (const int micro : {1, 2, 4}) {
    const Run run = make_run(folder / std::to_string(micro), {fmt::format("train.micro_batch={}", micro)});
    train(run.config, run.model, kQuiet);
  }
  const auto whole = read_metrics(folder / "4");
  for (const char* parts : {"1", "2"})
    for (std::size_t i = 0; i < whole.size(); ++i)
      CHECK(read_metrics(folder / parts)[i]["loss"].get<double>() ==
            Catch::Approx(whole[i]["loss"].get<double>()).epsilon(1e-5));
}

TEST_CASE("a document mask changes what is learnt from, and sources mix by weight") {
  const test::TemporaryFolder folder;
  // Two sources of many short documents: one repeats a token, the other counts.
  for (const bool counting : {false, true}) {
    TokenFileWriter writer((folder / (counting ? "count" : "repeat")).string(), TokenType::u16);
    for (std::int32_t d = 0; d < 60; ++d) {
      std::vector<std::int32_t> document;
      for (std::int32_t i = 0; i < 9; ++i) document.push_back(counting ? (d + i) % 100 + 5 : d + 5);
      document.push_back(2);
      writer.add_document(document);
    }
    writer.commit();
  }
  const std::string sources =
      fmt::format("data.tokens=[{}, {}]", (folder / "count").string(), (folder / "repeat").string());
  std::vector<double> losses;
  for (const char* override :
       {"data.document_mask=false", "data.document_mask=true", "data.weights=[3, 1]"}) {
    const fs::path run_dir = folder / std::to_string(losses.size());
    const Run run = make_run(run_dir, {sources, override, "data.validation=[]"});
    train(run.config, run.model, kQuiet);
    losses.push_back(read_metrics(run_dir)[0]["loss"].get<double>());
    CHECK(std::isfinite(losses.back()));
  }
  CHECK(losses[0] != losses[1]);
  CHECK(losses[0] != losses[2]);
}

TEST_CASE("several validation sources are each read once and count by their tokens") {
  const test::TemporaryFolder folder;
  const std::string tokens = (test::fixtures() / "deepseek_v2" / "tokens").string();
  std::vector<double> losses;
  for (const std::string& sources : {fmt::format("[{}]", tokens), fmt::format("[{}, {}]", tokens, tokens)}) {
    const Run run = make_run(folder / std::to_string(losses.size()), {"data.validation=" + sources});
    losses.push_back(*train(run.config, run.model, kQuiet).validation_loss);
  }
  CHECK(losses[0] == Catch::Approx(losses[1]).epsilon(1e-12));
}

TEST_CASE("metrics hold what the contract names") {
  const test::TemporaryFolder folder;
  const Run run = make_run(folder / "run");
  train(run.config, run.model, kQuiet);
  const auto lines = read_metrics(folder / "run");
  for (const char* key : {"step", "loss", "grad_norm", "learning_rate", "tokens", "tokens_per_second",
                          "step_seconds", "exposed_comm_seconds", "hidden_comm_seconds", "peak_memory_bytes",
                          "aux_loss", "load_max_over_mean", "dropped_tokens"})
    CHECK(lines[0].contains(key));
  CHECK(lines[2].contains("validation_loss"));
  CHECK_FALSE(lines[1].contains("validation_loss"));
  CHECK(lines[5]["tokens"] == 6 * 4 * 32);
  // The resolved configuration loads, and to the same run.
  RunConfig kept = load_run_config(folder / "run" / "config.yaml", {});
  kept.file = run.config.file;
  CHECK(kept == run.config);
  CHECK(test::parse_json(read_text_file(folder / "run" / "exit.json"))["reason"] == "done");
}

TEST_CASE("a checkpoint is a model folder") {
  const test::TemporaryFolder folder;
  const Run run = make_run(folder / "run");
  train(run.config, run.model, kQuiet);
  const fs::path step = folder / "run" / "checkpoints" / "step-6";
  CHECK(read_hub_config(step) == run.model);
  const Run next = make_run(folder / "next", {"init.from=" + step.string()});
  CHECK_NOTHROW(train(next.config, next.model, kQuiet));
}

TEST_CASE("resuming with another model or seed is refused with both values") {
  const test::TemporaryFolder folder;
  const Run run = make_run(folder / "run");
  train(run.config, run.model, kQuiet);
  ModelConfig other = run.model;
  other.farskip.mode = FarSkipMode::full;
  CHECK_THROWS_WITH(train(run.config, other, kQuiet),
                    ContainsSubstring("farskip: checkpoint null, configuration true"));
  const Run seed = make_run(folder / "run", {"seed=5"});
  CHECK_THROWS_WITH(train(seed.config, seed.model, kQuiet), ContainsSubstring("seed: checkpoint 1, now 5"));
}

TEST_CASE("a run directory has one writer") {
  const test::TemporaryFolder folder;
  const RunFolder holder(folder / "run", Logger());
  const Run run = make_run(folder / "run");
  CHECK_THROWS_WITH(train(run.config, run.model, kQuiet), ContainsSubstring("in use by process"));
}

TEST_CASE("a stop signal saves at a step boundary and the next run goes on") {
  const test::TemporaryFolder folder;
  const Run whole = make_run(folder / "whole", {"train.steps=400", "checkpoint.every=0"});
  std::thread signaller([&] {
    while (!fs::exists(folder / "whole" / "metrics.jsonl") ||
           fs::file_size(folder / "whole" / "metrics.jsonl") == 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::raise(SIGUSR1);
  });
  const TrainResult stopped = train(whole.config, whole.model, kQuiet);
  signaller.join();
  CHECK(stopped.stopped_early);
  CHECK(stopped.step < 400);
  CHECK(fs::exists(folder / "whole" / "checkpoints" / fmt::format("step-{}", stopped.step)));
  CHECK(test::parse_json(read_text_file(folder / "whole" / "exit.json"))["resumable"] == true);
  const Run rest =
      make_run(folder / "whole", {fmt::format("train.steps={}", stopped.step + 2), "checkpoint.every=0"});
  CHECK(train(rest.config, rest.model, kQuiet).step == stopped.step + 2);
}

TEST_CASE("a loss that is not finite stops the run and names the samples") {
  const test::TemporaryFolder folder;
  const Run run = make_run(
      folder / "run", {"train.learning_rate.peak=100.0", "train.learning_rate.final=100.0", "train.steps=60",
                       "train.optimizer.clip_grad_norm=0.0", "train.optimizer.weight_decay=1.0"});
  CHECK_THROWS_WITH(train(run.config, run.model, kQuiet),
                    ContainsSubstring("finite") && ContainsSubstring("samples"));
}

TEST_CASE("planned memory is what the run takes") {
  // Larger than the noise of the allocator; everything planned is touched.
  ErrorList errors;
  const ConfigNode tree = parse_yaml_text(R"(
family: qwen3_moe
vocab_size: 8192
hidden_size: 512
intermediate_size: 1024
num_hidden_layers: 4
num_attention_heads: 8
num_key_value_heads: 2
head_dim: 64
num_experts: 16
num_experts_per_tok: 2
moe_intermediate_size: 256
)",
                                          "test", errors);
  const ModelConfig model = read_model_section(tree, errors);
  errors.throw_if_any();
  // Each thread has scratch on its stack (backend/cpu/micro_kernel.h), which no plan counts.
  struct Threads {
    const int before = omp_get_max_threads();
    ~Threads() { omp_set_num_threads(before); }
  } threads;
  omp_set_num_threads(2);
  const std::uint64_t before = resident_bytes();
  const auto weights = test::make_weights(model);
  initialise_weights(*weights, 1, 0.02);
  TrainEngineOptions options;
  options.micro_batch = 2;
  options.sequence_length = 256;
  TrainEngine engine(wire_model(model), weights, options, test::quiet_context());
  Batch batch;
  for (int i = 0; i < 512; ++i) {
    batch.tokens.push_back(i * 13 % 8192);
    batch.targets.push_back(i * 17 % 8192);
  }
  engine.compute_gradients(std::span(&batch, 1), 1.0F / 512, 0.0F);
  engine.update(1e-3, 1);
  const auto measured = static_cast<double>(resident_bytes() - before);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they keep memory of their own
  CHECK(measured == Catch::Approx(static_cast<double>(engine.memory().total())).epsilon(0.03));
#else
  CHECK(measured >= static_cast<double>(engine.memory().total()));
#endif
}

TEST_CASE("learning rates follow their formulas") {
  LearningRateConfig c{LearningRateSchedule::cosine, 1.0, 0.1, 10, 0};
  CHECK(learning_rate_at(c, 0, 110) == Catch::Approx(0.1));
  CHECK(learning_rate_at(c, 9, 110) == Catch::Approx(1.0));
  CHECK(learning_rate_at(c, 59, 110) == Catch::Approx(0.55));
  CHECK(learning_rate_at(c, 109, 110) == Catch::Approx(0.1));
  c.schedule = LearningRateSchedule::constant;
  CHECK(learning_rate_at(c, 109, 110) == 1.0);
  c = {LearningRateSchedule::wsd, 1.0, 0.0, 0, 20};
  CHECK(learning_rate_at(c, 79, 100) == 1.0);
  CHECK(learning_rate_at(c, 89, 100) == Catch::Approx(0.5));
  CHECK(learning_rate_at(c, 99, 100) == Catch::Approx(0.0));
}

}  // namespace
}  // namespace farskip
