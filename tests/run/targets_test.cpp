// SPDX-License-Identifier: Apache-2.0
// Targets that do not count: steps and held-out sources without any, and the end of a stream.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "infer/evaluate.h"
#include "passes/farskip.h"
#include "run/metrics.h"
#include "support/catch.h"
#include "support/context.h"
#include "support/run_files.h"
#include "support/small_run.h"
#include "support/states.h"

namespace farskip::test {
namespace {

const Logger kQuiet(LogLevel::off);
constexpr std::int32_t kPadding = 9;

/// A token file of `counted` tokens that are not padding, between padding.
std::string write_tokens(const TemporaryFolder& folder, const std::string& name, int before, int counted,
                         int after) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(before), kPadding);
  for (int i = 0; i < counted; ++i) tokens.push_back(10 + i % 50);
  tokens.insert(tokens.end(), static_cast<std::size_t>(after), kPadding);
  TokenFileWriter writer((folder / name).string(), TokenType::u16);
  writer.add_document(tokens);
  writer.commit();
  return (folder / name).string();
}

/// Whether a checkpoint of the run has the weights of the model that it began with.
bool has_first_weights(const std::filesystem::path& run_dir, std::int64_t step) {
  const SafetensorsFolder before(small_model()), after(checkpoint_folder(run_dir, step));
  return std::all_of(before.tensors().begin(), before.tensors().end(), [&](const TensorInfo* info) {
    const HostTensor a = before.read(info->name), b = after.read(info->name);
    return std::equal(a.bytes().begin(), a.bytes().end(), b.bytes().begin(), b.bytes().end());
  });
}

TEST_CASE("a step without targets leaves the weights as they are and has no loss") {
  for (const SmallRunKind kind : {SmallRunKind::train, SmallRunKind::distill}) {
    const TemporaryFolder folder;
    // Steps of 4 samples of 32 tokens: nothing counts in the first two, everything in the third.
    const SmallRun run = make_small_run(
        folder / "run", kind,
        {"data.tokens=[" + write_tokens(folder, "t", 2 * 128 + 1, 128, 4 * 128) + "]", "data.shuffle=false",
         fmt::format("data.padding={}", kPadding), "checkpoint.every=1"});
    run_small(run);
    const auto lines = read_metrics(folder / "run");
    REQUIRE(lines.size() == 6);
    for (std::size_t i = 0; i < 6; ++i) {
      INFO(lines[i].dump());
      CHECK(lines[i]["loss"].is_null() == (i != 2));
      CHECK(lines[i]["grad_norm"].is_null() == (i != 2));
      CHECK(lines[i]["tokens"] == 128 * (i + 1));
    }
    CHECK(has_first_weights(folder / "run", 2));
    CHECK_FALSE(has_first_weights(folder / "run", 3));
    const SafetensorsFolder third(checkpoint_folder(folder / "run", 3)),
        last(checkpoint_folder(folder / "run", 6));
    for (const TensorInfo* info : third.tensors()) {  // neither decay nor old gradients move them
      const HostTensor a = third.read(info->name), b = last.read(info->name);
      CHECK(std::equal(a.bytes().begin(), a.bytes().end(), b.bytes().begin(), b.bytes().end()));
    }
  }
}

TEST_CASE("a run without a target says null in the end, not 0") {
  const TemporaryFolder folder;
  const SmallRun run = make_small_run(folder / "run", SmallRunKind::train,
                                      {"data.tokens=[" + write_tokens(folder, "t", 1000, 0, 0) + "]",
                                       "data.validation=[]", fmt::format("data.padding={}", kPadding)});
  CHECK_FALSE(run_small(run).loss);
  for (const auto& line : read_metrics(folder / "run")) CHECK(line["loss"].is_null());
  CHECK(has_first_weights(folder / "run", 6));
}

TEST_CASE("a held-out source without targets is left out of the mean") {
  const TemporaryFolder folder;
  const std::string tokens = (small_model() / "tokens").string(),
                    masked = write_tokens(folder, "masked", 300, 0, 0);
  std::vector<double> losses;
  for (const std::string& sources : {tokens, masked + ", " + tokens, tokens + ", " + masked}) {
    const SmallRun run = make_small_run(
        folder / std::to_string(losses.size()), SmallRunKind::distill,
        {"data.validation=[" + sources + "]", fmt::format("data.padding={}", kPadding),
         "distill.early_stopping.every=2", "distill.early_stopping.patience=2", "train.steps=4"});
    const TrainResult result = run_small(run);
    losses.push_back(*result.validation_loss);
    CHECK_FALSE(result.converged);
  }
  CHECK(std::isfinite(losses[0]));
  CHECK(losses[1] == losses[0]);
  CHECK(losses[2] == losses[0]);
}

TEST_CASE("without a target in any held-out source there is no validation loss, and no early stopping") {
  const TemporaryFolder folder;
  const std::string masked = "data.validation=[" + write_tokens(folder, "masked", 300, 0, 0) + "]",
                    padding = fmt::format("data.padding={}", kPadding);
  for (const SmallRunKind kind : {SmallRunKind::train, SmallRunKind::distill}) {
    const auto folder_of_run = folder / (kind == SmallRunKind::train ? "train" : "distill");
    const TrainResult result = run_small(make_small_run(folder_of_run, kind, {masked, padding}));
    CHECK(result.step == 6);
    const auto lines = read_metrics(folder_of_run);
    CHECK(lines[2].contains("validation_loss"));
    CHECK(lines[2]["validation_loss"].is_null());
    CHECK(lines[2]["loss"].is_number());
  }
  const SmallRun stopping = make_small_run(folder / "stopping", SmallRunKind::distill,
                                           {masked, padding, "distill.early_stopping.every=2"});
  CHECK_THROWS_WITH(run_small(stopping), ContainsSubstring("masked") && ContainsSubstring("early_stopping"));
}

TEST_CASE("a progress line says where there is no validation loss") {
  const TemporaryFolder folder;
  const auto line_of = [&](double validation_loss) {
    const fs::path file = folder / "stderr";
    const int kept = ::dup(2), to = ::open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ::dup2(to, 2);
    {
      StepMetrics m;
      m.step = 1;
      m.validation_loss = validation_loss;
      Progress(10, 0, Logger()).show(m);
    }
    ::dup2(kept, 2);
    ::close(kept);
    ::close(to);
    return read_text_file(file);
  };
  CHECK_THAT(line_of(2.5), ContainsSubstring("  validation 2.5000  "));
  CHECK_THAT(line_of(std::nan("")), ContainsSubstring("  no validation loss  "));
}

// The last window is filled up, which changes no number: it is compared with a window of just its length.
TEST_CASE("an evaluation counts every token but the first once, whatever the sequence length") {
  const auto tokens = std::make_shared<TokenFile>((small_model() / "tokens").string());
  const auto count = static_cast<std::int64_t>(tokens->num_tokens());
  const ModelConfig config = read_hub_config(small_model());
  InferenceEngine engine(wire_model(config), test::load_weights(small_model()), test::quiet_context());
  for (const bool document_mask : {false, true})
    for (const std::int64_t length : {std::int64_t{7}, std::int64_t{100}, count - 1, count + 50}) {
      CAPTURE(document_mask, length);
      SamplerOptions options;
      options.sequence_length = length;
      options.shuffle = false;
      options.document_mask = document_mask;
      options.whole_stream = true;
      const Sampler sampler({{tokens, 1.0}}, options);
      const Evaluation e = evaluate(engine, sampler, 3, 0);
      if (!document_mask) CHECK(e.tokens == count - 1);

      options.whole_stream = false;
      double loss = 0, counted = 0;
      const auto add = [&](const Batch& batch, std::int64_t sequence_length) {
        loss += engine.loss(batch, sequence_length).loss_sum;
        counted += static_cast<double>(count_targets(batch));
      };
      const std::int64_t whole = (count - 1) / length, rest = (count - 1) % length;
      for (std::int64_t n = 0; n < whole; ++n)
        add(read_batch(Sampler({{tokens, 1.0}}, options), static_cast<std::uint64_t>(n), 1), length);
      if (rest > 0) {
        Batch last = read_batch(sampler, static_cast<std::uint64_t>(whole), 1);
        last.tokens.resize(static_cast<std::size_t>(rest));
        last.targets.resize(static_cast<std::size_t>(rest));
        if (document_mask) last.document_start.resize(static_cast<std::size_t>(rest));
        add(last, rest);
      }
      CHECK(static_cast<double>(e.tokens) == counted);
      CHECK(e.loss == Catch::Approx(loss / counted).epsilon(1e-6));
    }
}

}  // namespace
}  // namespace farskip::test
