// SPDX-License-Identifier: Apache-2.0
// What a person sees who starts a run again: changes, damage and what is in the way.
#include "farskip/base/error.h"
#include "farskip/base/file.h"
#include "support/catch.h"
#include "support/run_files.h"
#include "support/support.h"
#include "tensor/hash.h"

namespace farskip {
namespace {

/// A small run and the command that starts it again.
struct Run {
  test::TemporaryFolder folder;
  Run() {
    write_text_file(folder / "run.yaml", R"(
farskip: {mode: "off"}
train:
  steps: 6
  sequence_length: 32
  global_batch: 4
  micro_batch: 2
  learning_rate: {schedule: cosine, peak: 1.0e-3}
checkpoint: {every: 3}
)");
  }
  fs::path dir() const { return folder / "run"; }
  test::CommandResult start(const std::string& overrides = "") const {
    const std::string model = (test::fixtures() / "deepseek_v2").string();
    return test::run_command(fmt::format("{} train {} run_dir={} init.from={} 'data.tokens=[{}/tokens]' {}",
                                         FARSKIP_BINARY, (folder / "run.yaml").string(), dir().string(),
                                         model, model, overrides));
  }
};

TEST_CASE("what has changed since the checkpoint is said with both values, and a jump of the rate") {
  const Run run;
  REQUIRE(run.start().status == 0);
  const auto same = run.start();
  CHECK(same.status == 0);
  CHECK_THAT(same.err, ContainsSubstring("nothing is left to do") && !ContainsSubstring("warning"));
  const auto more = run.start("train.steps=9 train.optimizer.betas='[0.8, 0.9]' data.document_mask=true");
  CHECK(more.status == 0);
  CHECK_THAT(more.err,
             ContainsSubstring("the configuration has changed since step 6:\n"
                               "  data.document_mask: checkpoint false, now true\n"
                               "  train.steps: checkpoint 6, now 9\n"
                               "  train.optimizer.betas: checkpoint [0.9, 0.95], now [0.8, 0.9]\n"));
  CHECK_THAT(more.err, ContainsSubstring("the learning rate was 0 in step 6 and is 0.000117 in step 7"));
}

TEST_CASE("a run that goes on under its own configuration warns of nothing") {
  const Run run;
  REQUIRE(run.start().status == 0);
  fs::remove_all(test::checkpoint_folder(run.dir(), 6));
  const auto again = run.start();
  CHECK(again.status == 0);
  CHECK_THAT(again.err, ContainsSubstring("resumed at step 3"));
  CHECK_THAT(again.err, ContainsSubstring("latest: names") && !ContainsSubstring("has changed") &&
                            !ContainsSubstring("the learning rate was"));
}

TEST_CASE("a run whose checkpoints are gone says that it begins anew, and keeps the metrics of the old one") {
  const Run run;
  REQUIRE(run.start().status == 0);
  const std::string metrics = read_text_file(run.dir() / "metrics.jsonl");
  for (const int step : {3, 6}) fs::remove_all(test::checkpoint_folder(run.dir(), step));
  const auto again = run.start();
  CHECK(again.status == 0);
  CHECK_THAT(
      again.err,
      ContainsSubstring("latest: names \"step-6\", which is no checkpoint here, and there is no other\n") &&
          ContainsSubstring(
              "the run begins anew from step 0, from no checkpoint; 6 lines of earlier steps are "
              "set aside as metrics.jsonl.replaced-"));
  CHECK(test::read_metrics(run.dir()).size() == 6);
  std::vector<std::string> aside;
  for (const auto& entry : fs::directory_iterator(run.dir()))
    if (entry.path().filename().string().starts_with("metrics.jsonl."))
      aside.push_back(read_text_file(entry));
  CHECK(aside == std::vector<std::string>{metrics});
}

TEST_CASE("strays beside shards are passed over with a notice, and no step is lost") {
  const Run run;
  REQUIRE(run.start().status == 0);
  write_text_file(test::checkpoint_folder(run.dir(), 6) / ".nfs0001", "x");
  const auto again = run.start("train.steps=7");
  CHECK(again.status == 0);
  CHECK_THAT(again.err,
             ContainsSubstring("step-6/.nfs0001: is no part of the checkpoint and is passed over") &&
                 ContainsSubstring("resumed at step 6"));
}

TEST_CASE("what stands where a checkpoint will be is found at the start") {
  const Run run;
  REQUIRE(run.start().status == 0);
  fs::create_directory_symlink("elsewhere", run.dir() / "checkpoints" / "step-9");
  const auto again = run.start("train.steps=12");
  CHECK(again.status == 74);
  CHECK_THAT(again.err, ContainsSubstring("step-9: is a link, where this run would write"));
  CHECK(test::read_metrics(run.dir()).size() == 6);
  CHECK(run.start("train.steps=12 checkpoint.resume=never").status == 0);  // set aside with the others
}

TEST_CASE("a checkpoint whose state is forged is passed over, and inspect says why") {
  const Run run;
  REQUIRE(run.start().status == 0);
  const fs::path manifest = test::checkpoint_folder(run.dir(), 6) / "manifest.json";
  std::string body = read_text_file(manifest);
  body.erase(0, body.find('\n') + 1);
  const std::string samples = "\"samples\": \"24\"";
  body.replace(body.find(samples), samples.size(), "\"samples\": \"-4\"");
  write_text_file(manifest, fmt::format("{{\"manifest_xxh3_128\": \"{}\",\n{}", hash_text(body), body));
  const auto seen = test::run_command(
      fmt::format("{} inspect {} --verify", FARSKIP_BINARY, manifest.parent_path().string()));
  CHECK(seen.status == 65);
  CHECK_THAT(seen.err, ContainsSubstring("manifest.json: state: `samples` is \"-4\""));
  const auto again = run.start();
  CHECK(again.status == 0);
  CHECK_THAT(again.err,
             ContainsSubstring("state: `samples` is \"-4\"") && ContainsSubstring("resumed at step 3"));
}

}  // namespace
}  // namespace farskip
