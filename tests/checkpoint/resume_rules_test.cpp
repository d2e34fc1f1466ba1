// SPDX-License-Identifier: Apache-2.0
// What may change between a checkpoint and the start that resumes from it.
#include "checkpoint/resume_rules.h"

#include <set>

#include "checkpoint/checkpoint_files.h"
#include "data/token_file.h"
#include "distill/teacher.h"
#include "farskip/base/file.h"
#include "support/catch.h"
#include "support/run_files.h"
#include "support/small_run.h"

namespace farskip {
namespace {

using test::make_small_run, test::run_small, test::SmallRunKind;

std::set<std::string> keys_with(std::set<AtResume> kinds) {
  std::set<std::string> keys;
  for (const ResumeRule& rule : resume_rules())
    if (kinds.contains(rule.at_resume)) keys.emplace(rule.key);
  return keys;
}

RunSettings settings(const std::vector<std::string>& overrides) {
  return settings_of(make_small_run("run", SmallRunKind::distill, overrides).config, {});
}

TEST_CASE("every key of the configuration has a row that says what a resume makes of it, and no other has") {
  ErrorList errors;
  read_run_config(parse_yaml_text("model: {}", "f"), errors);
  std::set<std::string> known, rows;
  for (const KnownKey& key : errors.known_keys())
    if (key.allowed != "map") known.insert(key.path);
  for (const ResumeRule& rule : resume_rules()) {
    INFO(rule.key);
    CHECK(rows.emplace(rule.key).second);  // once
  }
  for (const std::string& key : known) {
    INFO("add a row for " << key << " to src/checkpoint/resume_rules.cpp");
    CHECK(rows.contains(key));
  }
  for (const std::string& row : rows) {
    INFO("no key of the configuration: " << row);
    CHECK((known.contains(row) || row.starts_with("contents of ")));
  }
}

TEST_CASE("each setting that is compared shows when it has changed, alone and with both values") {
  const std::map<std::string, std::vector<std::string>> changes{
      {"seed", {"seed=2"}},
      {"precision", {"precision=bf16"}},
      {"data.document_mask", {"data.document_mask=true"}},
      {"data.shuffle", {"data.shuffle=false"}},
      {"data.prompt_end", {"data.prompt_end=3"}},
      {"data.padding", {"data.padding=3"}},
      {"train.steps", {"train.steps=7"}},
      {"train.sequence_length", {"train.sequence_length=16"}},
      {"train.global_batch", {"train.global_batch=8"}},
      {"train.micro_batch", {"train.micro_batch=1"}},
      {"train.optimizer.moments", {"train.optimizer.moments=bf16"}},
      {"train.optimizer.betas", {"train.optimizer.betas=[0.9, 0.99]"}},
      {"train.optimizer.eps", {"train.optimizer.eps=1e-6"}},
      {"train.optimizer.weight_decay", {"train.optimizer.weight_decay=0"}},
      {"train.optimizer.clip_grad_norm", {"train.optimizer.clip_grad_norm=2"}},
      {"train.learning_rate.peak", {"train.learning_rate.peak=2e-3"}},
      {"train.learning_rate.final", {"train.learning_rate.final=2e-4"}},
      {"train.learning_rate.warmup_steps", {"train.learning_rate.warmup_steps=1"}},
      {"train.optimizer.name", {"train.optimizer.name=muon"}},
      {"train.optimizer.momentum", {"train.optimizer.momentum=0.9"}},
      {"train.aux_loss", {"train.aux_loss=0.5"}},
      {"train.router_bias_update", {"train.router_bias_update=0.5"}},
      {"train.average_decay", {"train.average_decay=0.5"}},
      {"distill.loss", {"distill.loss={kl: 0.5, sft: 0.5}"}},
      {"distill.hidden_loss.kind", {"distill.hidden_loss={kind: cosine, weight: 0}"}},
      {"distill.hidden_loss.weight", {"distill.hidden_l2=0.5"}},
      {"distill.hidden_loss.anneal", {"distill.hidden_loss={weight: 0, anneal: 0.5}"}},
      {"distill.router_agreement", {"distill.router_agreement=0.5"}},
      {"distill.temperature", {"distill.temperature=2"}},
      {"distill.top_k", {"distill.top_k=3"}},
      {"distill.freeze", {"distill.freeze=[router]"}},
      {"distill.curriculum.every", {"distill.curriculum.every=3"}},
      {"distill.local_stage.share", {"distill.local_stage.share=0.25"}},
      {"distill.cache.top_k", {"distill.cache.path=kept"}},
  };
  const std::set<std::string> compared = keys_with({AtResume::refused, AtResume::warned});
  const std::set<std::string> other_cases{"train.learning_rate.schedule",
                                          "train.learning_rate.decay_steps",  // below
                                          "distill.hidden_layers",
                                          "distill.teacher_layers",
                                          "distill.early_stopping.every",
                                          "distill.early_stopping.patience",
                                          "distill.early_stopping.delta",
                                          "distill.early_stopping.metric",
                                          "distill.fold.text",
                                          "distill.fold.tokens",
                                          "distill.fold.sequences"};
  const RunSettings before = settings({});
  for (const std::string& key : compared) {
    INFO(key);
    if (key.starts_with("contents of ") || other_cases.contains(key)) continue;
    REQUIRE(changes.contains(key));
    const ChangedSettings changed = compare_settings(before, settings(changes.at(key)));
    REQUIRE(changed.refused.size() + changed.warned.size() == 1);
    const std::string line = changed.refused.empty() ? changed.warned[0] : changed.refused[0];
    CHECK(line.starts_with(key + ": checkpoint " + before.at(key) + ", now "));
    CHECK(changed.refused.empty() ==
          (key != "seed" && key != "train.optimizer.name" && key != "train.average_decay"));
  }
  const auto lines = [&](const std::vector<std::string>& a, const std::vector<std::string>& b) {
    return fmt::format("{}", fmt::join(compare_settings(settings(a), settings(b)).warned, "\n"));
  };
  CHECK(lines({"distill.hidden_l2=1", "distill.hidden_layers=[0]", "distill.teacher_layers=[1]"},
              {"distill.hidden_l2=1", "distill.hidden_layers=[2]", "distill.teacher_layers=[3]"}) ==
        "distill.hidden_layers: checkpoint [0], now [2]\ndistill.teacher_layers: checkpoint [1], now [3]");
  CHECK(lines({"distill.fold.text=a"}, {"distill.fold.text=b", "distill.fold.sequences=8"}) ==
        "distill.fold.text: checkpoint a, now b (weights are folded before the first step alone)\n"
        "distill.fold.sequences: checkpoint 512, now 8 (weights are folded before the first step alone)");
  CHECK_THAT(lines({}, {"distill.early_stopping.every=3"}),
             ContainsSubstring("distill.early_stopping.every: checkpoint none, now 3") &&
                 ContainsSubstring("metric: checkpoint none, now validation_loss (its looks begin anew)"));
}

TEST_CASE("keys that the schedule of the rate does not use are not compared") {
  const auto lines = [](const std::vector<std::string>& a, const std::vector<std::string>& b) {
    return compare_settings(settings(a), settings(b)).warned;
  };
  const std::string wsd = "train.learning_rate.schedule=wsd",
                    constant = "train.learning_rate.schedule=constant";
  // The default of decay_steps follows train.steps.
  CHECK(lines({"train.steps=10"}, {"train.steps=100"}) ==
        std::vector<std::string>{"train.steps: checkpoint 10, now 100"});
  CHECK(lines({wsd, "train.steps=10"}, {wsd, "train.steps=100"}).size() == 2);
  CHECK(lines({constant}, {constant, "train.learning_rate.final=5e-4"}).empty());
  CHECK(lines({}, {wsd}).size() == 2);
}

TEST_CASE("steps, what follows from them, and how ranks cut them up are no other work") {
  const auto lines = [](const std::vector<std::string>& done, const std::vector<std::string>& asked) {
    return find_other_work(settings(done), settings(asked));
  };
  const std::string wsd = "train.learning_rate.schedule=wsd";
  CHECK(lines({wsd, "train.steps=100"}, {wsd, "train.steps=10", "train.micro_batch=1"}).empty());
  const std::string warmup = "train.learning_rate.warmup_steps=";
  CHECK(lines({"train.steps=100", warmup + "20"}, {"train.steps=10", warmup + "10"}).empty());
  CHECK(lines({"train.steps=100", warmup + "20"}, {"train.steps=100", warmup + "10"}) ==
        std::vector<std::string>{warmup.substr(0, warmup.size() - 1) + ": checkpoint 20, now 10"});
}

TEST_CASE("what is free to change, or judged by what it stands for, is not compared") {
  const RunSettings now = settings({"name=other", "run_dir=elsewhere", "device=cpu", "parallel.zero=1",
                                    "parallel.timeout=3", "schedule.overlap=false", "schedule.recompute=full",
                                    "data.tokens=[a, b]", "data.validation=[c]", "train.validate_every=1",
                                    "distill.teacher=moved", "checkpoint.every=1", "checkpoint.keep=1",
                                    "checkpoint.resume=required", "checkpoint.async=false"});
  CHECK(compare_settings(settings({}), now).refused.empty());
  CHECK(compare_settings(settings({}), now).warned.empty());
}

TEST_CASE("a setting that the checkpoint does not know is not compared") {
  CHECK(compare_settings({}, settings({})).warned.empty());
  CHECK(compare_settings({{"seed", "1"}, {"future.key", "3"}}, settings({})).refused.empty());
}

/// A copy of the fixture's token file with one id changed.
std::string change_token(const fs::path& to) {
  const std::string from = (test::small_model() / "tokens").string();
  fs::copy_file(from + ".idx", to.string() + ".idx");
  std::string bytes = read_text_file(from + ".bin");
  const std::size_t at = bytes.size() / 4 * 2;  // the low byte of a token
  bytes[at] = static_cast<char>(bytes[at] ^ 1);
  write_text_file(to.string() + ".bin", bytes);
  return to.string();
}

TEST_CASE("token files are told apart by what they hold, and not by where they lie") {
  const test::TemporaryFolder folder;
  const std::string from = (test::small_model() / "tokens").string();
  for (const char* suffix : {".bin", ".idx"})
    fs::copy_file(from + suffix, (folder / "moved").string() + suffix);
  CHECK(TokenFile((folder / "moved").string()).fingerprint() == TokenFile(from).fingerprint());
  const TokenFile other(change_token(folder / "other"));
  CHECK(other.num_tokens() == TokenFile(from).num_tokens());
  CHECK(other.fingerprint() != TokenFile(from).fingerprint());
}

TEST_CASE("teachers are told apart by what they hold, and not by where they lie") {
  const test::TemporaryFolder folder;
  fs::copy(test::small_model(), folder / "moved");
  CHECK(fingerprint_model(folder / "moved") == fingerprint_model(test::small_model()));
  std::string weights = read_text_file(folder / "moved" / "model.safetensors");
  weights[weights.size() - 100] = static_cast<char>(weights[weights.size() - 100] ^ 1);
  write_text_file(folder / "moved" / "model.safetensors", weights);
  CHECK(fingerprint_model(folder / "moved") != fingerprint_model(test::small_model()));
}

TEST_CASE("a resumed distillation keeps its teacher, wherever its folder is") {
  const test::TemporaryFolder folder;
  const auto run = [&](const fs::path& teacher, const std::string& steps) {
    run_small(make_small_run(folder / "run", SmallRunKind::distill,
                             {"distill.teacher=" + teacher.string(), "train.steps=" + steps}));
  };
  fs::copy(test::small_model(), folder / "moved");
  run(test::small_model(), "2");
  CHECK_NOTHROW(run(folder / "moved", "4"));
  std::string weights = read_text_file(folder / "moved" / "model.safetensors");
  weights[weights.size() - 100] = static_cast<char>(weights[weights.size() - 100] ^ 1);
  write_text_file(folder / "moved" / "model.safetensors", weights);
  CHECK_THROWS_WITH(
      run(folder / "moved", "6"),
      ContainsSubstring("contents of distill.teacher: checkpoint hash ") && ContainsSubstring("init.from: "));
}

TEST_CASE("training does not turn into a distillation, nor back") {
  const test::TemporaryFolder folder;
  run_small(make_small_run(folder / "run", SmallRunKind::train, {"farskip.mode=full", "train.steps=2"}));
  CHECK_THROWS_WITH(run_small(make_small_run(folder / "run", SmallRunKind::distill)),
                    ContainsSubstring("contents of distill.teacher: checkpoint none, now hash "));
}

TEST_CASE("looks of early stopping begin anew with another metric or other held-out text") {
  const test::TemporaryFolder folder;
  const auto numbers = [&](std::int64_t steps, std::vector<std::string> overrides) {
    overrides.insert(overrides.end(), {fmt::format("train.steps={}", steps), "distill.early_stopping.every=2",
                                       "train.learning_rate.peak=1e-12", "train.learning_rate.final=0"});
    run_small(make_small_run(folder / "run", SmallRunKind::distill, overrides));
    return open_checkpoint(test::checkpoint_folder(folder / "run", steps)).state().at("numbers");
  };
  CHECK(numbers(4, {}).at("best_step") == "2");
  CHECK(numbers(6, {}).at("best_step") == "2");
  CHECK(numbers(8, {"distill.early_stopping.metric=validation_accuracy"}).at("best_step") == "8");
  const auto other = numbers(10, {"distill.early_stopping.metric=validation_accuracy",
                                  fmt::format("data.validation=[{}]", change_token(folder / "held-out"))});
  CHECK(other.at("best_step") == "10");
  CHECK_FALSE(other.contains("untrained_loss"));  // of the student on the old text
}

}  // namespace
}  // namespace farskip
