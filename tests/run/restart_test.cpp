// SPDX-License-Identifier: Apache-2.0
// Starts and restarts of runs, of one rank and of two that are threads: what is kept, what is refused, what
// is said.
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <functional>
#include <set>

#include "base/stop_signals.h"
#include "checkpoint/checkpoint_files.h"
#include "checkpoint/resume_rules.h"
#include "comm/local.h"
#include "run/run_folder.h"
#include "support/catch.h"
#include "support/json.h"
#include "support/run_files.h"
#include "support/small_run.h"

namespace farskip {
namespace {

using test::checkpoint_folder, test::make_small_run, test::run_small, test::SmallRunKind;

const Logger kSilent(LogLevel::off);

TrainResult run(const fs::path& run_dir, const std::vector<std::string>& overrides = {},
                SmallRunKind kind = SmallRunKind::train) {
  return run_small(make_small_run(run_dir, kind, overrides));
}

void run_on_two(const fs::path& run_dir, std::vector<std::string> overrides,
                SmallRunKind kind = SmallRunKind::train) {
  const test::SmallRun small = make_small_run(run_dir, kind, overrides);
  run_local_ranks(2, [&](const Communicator& world) {
    Heartbeat heartbeat;
    train(small.config, small.model, world, heartbeat, kSilent, make_cpu_device());
  });
}

std::set<std::string> checkpoints_of(const fs::path& run_dir) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(run_dir / "checkpoints"))
    if (const std::string name = entry.path().filename().string(); name.starts_with("step-"))
      names.insert(name.substr(0, name.find('-', name.find(".replaced"))));
  return names;
}

TEST_CASE("a run that begins anew sets the checkpoints of an earlier one aside") {
  const test::TemporaryFolder folder;
  run(folder / "run");
  REQUIRE(checkpoints_of(folder / "run") == std::set<std::string>{"step-2", "step-4", "step-6"});
  CHECK(run(folder / "run",
            {"checkpoint.resume=never", "checkpoint.every=1", "checkpoint.keep=2", "train.steps=3"})
            .step == 3);
  CHECK(checkpoints_of(folder / "run") ==
        std::set<std::string>{"step-2", "step-2.replaced", "step-3", "step-4.replaced", "step-6.replaced"});
  CHECK(find_newest_valid_checkpoint(folder / "run" / "checkpoints", kSilent)->step() == 3);
}

TEST_CASE("as many checkpoints are kept as the configuration says, beyond 32 bits too") {
  for (const auto& [keep, left] : {std::pair{"1", std::size_t{1}},
                                   {"4294967297", std::size_t{3}},
                                   {"9223372036854775807", std::size_t{3}}}) {
    const test::TemporaryFolder folder;
    run(folder / "run", {std::string("checkpoint.keep=") + keep});
    INFO(keep);
    CHECK(checkpoints_of(folder / "run").size() == left);
  }
}

/// The same run from a file of this name.
test::SmallRun from_file(const fs::path& run_dir, const std::string& file, bool named_by_file,
                         const std::vector<std::string>& overrides = {}) {
  test::SmallRun small = make_small_run(run_dir, SmallRunKind::train, overrides);
  small.config.file = file;
  small.config.named_by_file = named_by_file;
  return small;
}

TEST_CASE("a run folder is not shared by two configurations because their files have one name") {
  const test::TemporaryFolder folder;
  const fs::path runs = folder / "run";
  const std::string other_rate = "train.learning_rate.peak=0.01";
  run_small(from_file(runs, "a/lr.yaml", true, {"train.steps=2"}));
  // The same file may change and go on, also by another way to it, as may a copy that says the same.
  run_small(from_file(runs, "a/lr.yaml", true, {"train.steps=3"}));
  run_small(from_file(runs, "b/../a/./lr.yaml", true, {"train.steps=4", other_rate}));
  run_small(from_file(runs, "b/lr.yaml", true, {"train.steps=4", other_rate}));
  run_small(
      from_file(runs, (fs::current_path() / "b" / "lr.yaml").string(), true, {"train.steps=5", other_rate}));
  CHECK_THROWS_WITH(run_small(from_file(runs, "c/lr.yaml", true, {"train.steps=8", other_rate})),
                    ContainsSubstring("holds the run of b/lr.yaml, and c/lr.yaml is another configuration: "
                                      "train.steps is 5 there and 8 here; give this run a name or run_dir"));
  // A run can be taken over on purpose.
  CHECK(run_small(from_file(runs, "c/lr.yaml", false, {"train.steps=6", other_rate})).step == 6);
}

TEST_CASE("a finished run is not the answer to another request") {
  const test::TemporaryFolder folder;
  const fs::path runs = folder / "run";
  const auto again = [&](const std::string& override, const std::string& file = "a.yaml") {
    return run_small(from_file(runs, file, false, {override})).step;
  };
  run_small(from_file(runs, "a.yaml", false));
  const std::string config = read_text_file(runs / "config.yaml");
  for (const char* file : {"a.yaml", "b.yaml"})
    CHECK_THROWS_WITH(again("train.learning_rate.peak=0.01", file),
                      ContainsSubstring("holds a finished run, and this start asks for another:\n  "
                                        "train.learning_rate.peak: checkpoint 0.001, now 0.01\ngive it a "
                                        "name or run_dir of its own, or raise train.steps"));
  fs::copy(test::small_model(), folder / "model");
  const std::string from = "init.from=" + (folder / "model").string();
  CHECK_THROWS_WITH(again(from), ContainsSubstring("asks for another:\n  init.from: ") &&
                                     ContainsSubstring("model\ngive it a name"));
  CHECK(read_text_file(runs / "config.yaml") == config);
  // The same, fewer steps with what follows from them, and what does not change what is learnt.
  for (const char* same : {"train.steps=6", "train.steps=3", "train.micro_batch=4", "checkpoint.keep=5",
                           "schedule.recompute=full", "parallel.timeout=7"}) {
    INFO(same);
    CHECK(again(same, "b.yaml") == 6);
  }
  CHECK(
      run_small(from_file(runs, "b.yaml", false, {"train.learning_rate.peak=0.01", "train.steps=8"})).step ==
      8);
  CHECK(
      run_small(from_file(runs, "b.yaml", false, {from, "train.steps=2", "checkpoint.resume=never"})).step ==
      2);
}

TEST_CASE("a distillation that early stopping has ended is not the answer to another request") {
  const test::TemporaryFolder folder;
  const auto start = [&](const std::string& override) {
    return run(folder / "run",
               {"train.steps=50", "train.learning_rate.peak=1e-12", "train.learning_rate.final=0",
                "distill.early_stopping={every: 1, patience: 2}", override},
               SmallRunKind::distill);
  };
  REQUIRE(start("checkpoint.keep=3").converged);
  CHECK(start("checkpoint.keep=4").converged);
  CHECK_THROWS_WITH(
      start("distill.temperature=2"),
      ContainsSubstring("this start asks for another:\n  distill.temperature: checkpoint 1.0, now 2.0"));
}

TEST_CASE("a folder that could take no checkpoint is refused before the first step") {
  const auto refused = [](const std::string& message, const std::function<void(const fs::path&)>& spoil,
                          SmallRunKind kind = SmallRunKind::train,
                          const std::vector<std::string>& overrides = {}) {
    const test::TemporaryFolder folder;
    fs::create_directories(folder / "run");
    spoil(folder / "run");
    INFO(message);
    CHECK_THROWS_WITH(run(folder / "run", overrides, kind), ContainsSubstring(message));
    CHECK_FALSE(fs::exists(folder / "run" / "metrics.jsonl"));
  };
  const auto file = [](const char* name) {
    return [name](const fs::path& run_dir) {
      fs::create_directories((run_dir / name).parent_path());
      write_text_file(run_dir / name, "text");
    };
  };
  refused("checkpoints: checkpoints go there, and it is no folder", file("checkpoints"));
  refused("step-4: is a file, where this run would write", file("checkpoints/step-4"));
  refused("step-4: is a link", [](const fs::path& run_dir) {
    fs::create_directories(run_dir / "checkpoints");
    fs::create_directory_symlink("/", run_dir / "checkpoints" / "step-4");
  });
  refused("latest: is a folder, where this run would write",
          [](const fs::path& run_dir) { fs::create_directories(run_dir / "checkpoints" / "latest"); });
  refused("best: checkpoints go there, and it is no folder", file("best"), SmallRunKind::distill,
          {"distill.early_stopping={every: 2}"});
  if (::geteuid() == 0) return;  // whom no permissions stop
  refused("checkpoints: cannot write checkpoints: Permission denied", [](const fs::path& run_dir) {
    fs::create_directories(run_dir / "checkpoints");
    fs::permissions(run_dir / "checkpoints", fs::perms::owner_read | fs::perms::owner_exec);
  });
}

TEST_CASE("a link to an old checkpoint disturbs no run that has gone beyond it") {
  const test::TemporaryFolder folder;
  run(folder / "run", {"train.steps=4"});
  const fs::path old = checkpoint_folder(folder / "run", 2);
  fs::rename(old, folder / "archive");
  fs::create_directory_symlink(folder / "archive", old);
  CHECK(run(folder / "run").step == 6);
}

TEST_CASE("what a run that died has left half written is gone at the next start") {
  const test::TemporaryFolder folder;
  run(folder / "run", {"train.steps=2"});
  const pid_t child = ::fork();
  if (child == 0) ::_exit(0);
  ::waitpid(child, nullptr, 0);
  const std::string dead = fmt::format(".tmp-{}", child);
  const fs::path half = folder / "run" / "checkpoints" / ("step-4" + dead + "-0123456789abcdef");
  fs::create_directories(half);
  write_text_file(folder / "run" / ("config.yaml" + dead), "");
  write_text_file(folder / "run" / "checkpoints" / ("latest" + dead), "");
  run(folder / "run", {"train.steps=2"});
  CHECK_FALSE(fs::exists(half));
  CHECK_FALSE(fs::exists(folder / "run" / ("config.yaml" + dead)));
  CHECK_FALSE(fs::exists(folder / "run" / "checkpoints" / ("latest" + dead)));
}

TEST_CASE("a stop request before the first step ends the start, and says that the run can go on") {
  for (const SmallRunKind kind : {SmallRunKind::train, SmallRunKind::distill}) {
    const test::TemporaryFolder folder;
    run(folder / "run", {"train.steps=2"}, kind);
    const StopSignals signals;  // the command has its own, from its first moment
    ::raise(SIGUSR1);
    CHECK_THROWS_AS(run(folder / "run", {}, kind), StopRequested);
    CHECK(test::parse_json(read_text_file(folder / "run" / "exit.json")) ==
          nlohmann::json{{"reason", "stopped on request"}, {"step", 2}, {"resumable", true}});
  }
  const test::TemporaryFolder folder;
  CHECK(run(folder / "run", {"train.steps=2"}).step == 2);  // the request is over with its run
}

TEST_CASE("a distillation that begins anew sets its best checkpoint aside") {
  const test::TemporaryFolder folder;
  const std::vector<std::string> overrides{"distill.early_stopping.every=1"};
  run(folder / "run", overrides, SmallRunKind::distill);
  CHECK(run(folder / "run", {overrides[0], "checkpoint.resume=never"}, SmallRunKind::distill).step == 6);
  int set_aside = 0;
  for (const auto& entry : fs::directory_iterator(folder / "run" / "best"))
    set_aside += entry.path().string().find(".replaced-") != std::string::npos ? 1 : 0;
  CHECK(set_aside == 1);
}

TEST_CASE("a checkpoint says with which settings the steps before it were done") {
  const test::TemporaryFolder folder;
  const auto settings = [&](std::int64_t step) {
    return open_checkpoint(checkpoint_folder(folder / "run", step)).state().at("settings");
  };
  run(folder / "run", {"data.shuffle=false"});
  CHECK(settings(6).at("data.shuffle") == "false");
  CHECK_THAT(settings(6).at(kDataContents).get<std::string>(), ContainsSubstring(" tokens with hash "));
  run(folder / "run", {"data.shuffle=true", "train.steps=8"});  // goes on, with a warning
  CHECK(settings(6).at("data.shuffle") == "false");
  CHECK(settings(8).at("data.shuffle") == "true");
}

TEST_CASE("a source of weight 0 is left out") {
  const test::TemporaryFolder folder;
  const std::string tokens = (test::small_model() / "tokens").string();
  run(folder / "one");
  run(folder / "two", {fmt::format("data.tokens=[{0},{0}]", tokens), "data.weights=[0,2]"});
  CHECK(test::checkpoint_bytes(folder / "one", 6) == test::checkpoint_bytes(folder / "two", 6));
}

TEST_CASE("weights that an update broke are not saved, and the last whole checkpoint stays") {
  const test::TemporaryFolder folder;
  run(folder / "run", {"checkpoint.every=1", "checkpoint.keep=1", "train.steps=2"});
  test::SmallRun broken = make_small_run(folder / "run", SmallRunKind::train,
                                         {"checkpoint.every=1", "checkpoint.keep=1", "train.steps=3"});
  broken.config.train.optimizer.weight_decay = 1e300;  // more than a configuration may say
  CHECK_THROWS_WITH(run_small(broken), ContainsSubstring("not finite: not saved"));
  CHECK(checkpoints_of(folder / "run") == std::set<std::string>{"step-2"});
}

TEST_CASE("a checkpoint is checked before another run begins from it, or learns from it") {
  const test::TemporaryFolder folder;
  run(folder / "run");
  const fs::path step = checkpoint_folder(folder / "run", 6), file = step / "model.safetensors";
  std::string bytes = read_text_file(file);
  bytes[bytes.size() - 3] ^= 1;
  write_text_file(file, bytes);
  CHECK_THROWS_AS(run(folder / "next", {"init.from=" + step.string()}), DataError);
  CHECK_THROWS_AS(run(folder / "taught", {"distill.teacher=" + step.string()}, SmallRunKind::distill),
                  DataError);
}

TEST_CASE("what is measured for a plan knows masks, and losses that a later start adds") {
  const test::TemporaryFolder folder;
  run_on_two(folder / "run", {"train.steps=2", "parallel.expert=2", "train.aux_loss=0"});
  const std::string before = read_text_file(folder / "run" / "costs.txt");
  run_on_two(folder / "run", {"train.steps=4", "parallel.expert=2", "train.aux_loss=0"});
  CHECK(read_text_file(folder / "run" / "costs.txt") == before);
  run_on_two(folder / "run",
             {"train.steps=6", "parallel.expert=2", "train.aux_loss=0.01", "data.document_mask=true"});
  CHECK_THAT(read_text_file(folder / "run" / "costs.txt"), ContainsSubstring("balance_loss"));
}

TEST_CASE("experts alone are trained on several ranks") {
  const test::TemporaryFolder folder;
  for (const char* expert : {"parallel.expert=2", "parallel.expert=1"}) {
    run_on_two(folder / expert,
               {"train.steps=2", expert,
                "distill.freeze=[embedding, head, attention, router, shared_experts, dense_mlp, norms]"},
               SmallRunKind::distill);
    CHECK(fs::exists(checkpoint_folder(folder / expert, 2)));
  }
}

TEST_CASE("routers that cannot be compared are refused, not left out") {
  const test::TemporaryFolder folder;
  test::SmallRun small =
      make_small_run(folder / "run", SmallRunKind::distill, {"distill.router_agreement=0.5"});
  small.model.moe.top_k = 2;
  CHECK_THROWS_WITH(run_small(small), ContainsSubstring("distill.router_agreement compares routers"));
}

TEST_CASE("a tokenizer that is only copied is read at the start all the same") {
  const test::TemporaryFolder folder;
  CHECK_THROWS_AS(run(folder / "run", {"data.tokenizer=" + (folder / "none.json").string()}),
                  MissingInputError);
  CHECK_FALSE(fs::exists(folder / "run" / "checkpoints"));
}

TEST_CASE("damaged lines of the metrics are left out, and the others stay") {
  const test::TemporaryFolder folder;
  const fs::path metrics = folder / "run" / "metrics.jsonl";
  run(folder / "run", {"train.steps=4"});
  std::string text = read_text_file(metrics);
  text.insert(text.find('\n') + 1,
              "{\"step\": 18446744073709551615}\nnonsense\n\xff\n[[[[\n{\"step\": -1}\n");
  write_text_file(metrics, text + "{\"step\": 5, \"lo");
  run(folder / "run");
  std::vector<std::int64_t> steps;
  for (const auto& line : test::read_metrics(folder / "run")) steps.push_back(line.at("step"));
  CHECK(steps == std::vector<std::int64_t>{1, 2, 3, 4, 5, 6});
}

TEST_CASE("a line of metrics that cannot be written ends a run with its last step saved, the last one too") {
  const test::TemporaryFolder folder;
  // All ranks hear of it with the sums of the next step, if there is one.
  for (const auto& [steps, last] : {std::pair{"1", "1"}, {"6", "2"}}) {
    const fs::path run_dir = folder / steps;
    ::setenv("FARSKIP_FAULT", "metrics.append:error", 1);
    CHECK_THROWS_WITH(run(run_dir, {std::string("train.steps=") + steps}),
                      ContainsSubstring("failure at metrics.append") &&
                          ContainsSubstring(fmt::format("the state of step {} is saved", last)));
    ::unsetenv("FARSKIP_FAULT");
    CHECK(checkpoints_of(run_dir) == std::set<std::string>{fmt::format("step-{}", last)});
    CHECK_FALSE(fs::exists(run_dir / "exit.json"));
  }
}

TEST_CASE("a run writes through no link in its folder, and finds what is in its way at the start") {
  const test::TemporaryFolder folder;
  run(folder / "run", {"train.steps=2"});
  write_text_file(folder / "elsewhere", "kept");
  for (const char* name :
       {"lock", "config.yaml", "metrics.jsonl", "exit.json", "costs.txt", "checkpoints/latest"}) {
    const fs::path path = folder / "run" / name;
    INFO(name);
    fs::remove(path);
    fs::create_symlink(folder / "elsewhere", path);
    CHECK_THROWS_WITH(run(folder / "run", {"train.steps=4"}), ContainsSubstring(path.string() + ": is "));
    fs::remove(path);
    fs::create_directory(path);
    CHECK_THROWS_WITH(run(folder / "run", {"train.steps=4"}), ContainsSubstring(path.string() + ": is "));
    fs::remove(path);
  }
  CHECK(read_text_file(folder / "elsewhere") == "kept");
  CHECK(run(folder / "run", {"train.steps=4"}).step == 4);
}

TEST_CASE("a run folder that was not given back is taken over, and its old end forgotten") {
  const test::TemporaryFolder folder;
  { const RunFolder given_back(folder / "run", kSilent); }
  CHECK(read_text_file(folder / "run" / "lock").empty());
  const RunFolder next(folder / "run", kSilent);
  CHECK_THAT(read_text_file(folder / "run" / "lock"), ContainsSubstring("process "));
  next.write_exit("done", 3, false);
  next.forget_exit();
  CHECK_FALSE(fs::exists(folder / "run" / "exit.json"));
}

}  // namespace
}  // namespace farskip
