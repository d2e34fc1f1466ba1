// SPDX-License-Identifier: Apache-2.0
// Numbers that are not finite: named, not saved, and the last good state is.
#include "run/bad_numbers.h"

#include <cmath>
#include <limits>
#include <set>

#include "checkpoint/training_checkpoint.h"
#include "comm/local.h"
#include "support/catch.h"
#include "support/context.h"
#include "support/run_files.h"
#include "support/small_run.h"
#include "support/training.h"

namespace farskip {
namespace {

using test::checkpoint_folder, test::make_small_run, test::run_small, test::SmallRunKind;

const Logger kSilent(LogLevel::off);
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();

/// The memory of a small model, all zero.
struct Memory {
  std::vector<LocalParameter> parameters =
      whole_parameters(list_parameters(read_hub_config(test::small_model())));
  std::shared_ptr<States> states = test::make_weights(parameters);

  Memory() {
    std::vector<StateSpec> gradients;
    for (const LocalParameter& p : parameters)
      gradients.push_back(
          {gradient_name(p.spec.name), Role::gradient, DType::f32, std::make_shared<LocalParameter>(p)});
    states->add(std::move(gradients));
    states->add(test::moments_of(parameters));
    for (const Role role : {Role::weight, Role::gradient, Role::optimizer}) states->fill_zero(role);
  }
  /// Breaks the last value of the part of a parameter's state that is hub tensor `name`.
  void spoil(Role role, std::string_view kind, const std::string& name, float with) {
    for (const StateSpec& spec : states->specs())
      for (const HubPiece& piece : spec.parameter->spec.pieces)
        if (spec.role == role && spec.kind == kind && piece.name == name) {
          const std::int64_t end = (piece.first_row + piece.shape[0]) * spec.parameter->spec.row_size();
          test::values_of(*states, spec.name)[static_cast<std::size_t>(end - 1)] = with;
          return;
        }
    FAIL(name);
  }
  std::string describe() { return describe_bad_tensors(*states); }
};

TEST_CASE("the first tensor that is not finite is named as the hub names it: the cause before what follows") {
  Memory m;
  CHECK(m.describe().empty());
  const std::string expert = "model.layers.2.mlp.experts.5.up_proj.weight";
  m.spoil(Role::gradient, "", "model.embed_tokens.weight", kNaN);
  CHECK(m.describe() == "gradient of model.embed_tokens.weight");
  m.spoil(Role::gradient, "", expert, kInf);  // of a later layer, so the backward comes to it first
  CHECK(m.describe() == "gradient of " + expert + " (and 1 more tensors)");
  m.spoil(Role::optimizer, kSecondMoment, "model.norm.weight", kInf);
  CHECK(m.describe() == "moment adam.v.model.norm.weight (and 2 more tensors)");
  m.spoil(Role::weight, "", expert, -kInf);
  CHECK(m.describe() == "parameter " + expert + " (and 3 more tensors)");
}

TEST_CASE("a model is dead after twenty steps without a gradient, or with a loss far above a guess") {
  const double guess = std::log(160.0);
  const auto first_warning = [](const auto& numbers) {
    DeadModelWatch watch(160);
    for (std::int64_t step = 1; step <= 100; ++step) {
      const auto [loss, norm] = numbers(step);
      if (watch.look(step, loss, norm)) return step;
    }
    return std::int64_t{0};
  };
  using Numbers = std::pair<double, double>;
  CHECK(first_warning([&](std::int64_t) { return Numbers{guess, 0.0}; }) == 20);
  CHECK(first_warning([&](std::int64_t) { return Numbers{2.01 * guess, 1.0}; }) == 20);
  CHECK(first_warning([&](std::int64_t s) { return Numbers{s % 2 == 0 ? guess : 1e6, s % 2}; }) == 20);
  CHECK(first_warning([&](std::int64_t) { return Numbers{1.99 * guess, 1e-30}; }) == 0);
  CHECK(first_warning([&](std::int64_t s) { return Numbers{s % 20 == 0 ? guess : 1e6, 1.0}; }) == 0);
  DeadModelWatch watch(160);
  int warnings = 0;
  for (std::int64_t step = 1; step <= 2000; ++step) warnings += watch.look(step, 1e6, 1.0) ? 1 : 0;
  CHECK(warnings == 3);  // after 20, 200 and 2000 steps
}

TEST_CASE("a step whose loss is not finite changes neither parameters nor moments") {
  TrainEngineOptions options;
  options.micro_batch = 2;
  options.sequence_length = 16;
  test::Training t("deepseek_v2", FarSkipMode::off, make_cpu_device(), options);
  CHECK(t.step(0).updated);
  test::values_of(*t.states, "model.norm.weight")[0] = kInf;
  const std::string name = "model.layers.1.self_attn.o_proj.weight";
  const auto copy = [&](const std::string& state) {
    const auto values = test::values_of(*t.states, state);
    return std::vector<float>(values.begin(), values.end());
  };
  const auto weight = copy(name), first = copy("adam.m." + name);
  const StepResult result = t.step(1);
  CHECK_FALSE(result.loss_is_finite);
  CHECK_FALSE(result.updated);
  CHECK(copy(name) == weight);
  CHECK(copy("adam.m." + name) == first);
}

std::set<std::string> checkpoints_of(const fs::path& run_dir) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(run_dir / "checkpoints"))
    names.insert(entry.path().filename().string());
  names.erase("latest");
  return names;
}

/// The fixture's tokens, of which one in the middle is in no vocabulary. Returns its position.
std::uint64_t write_bad_tokens(const fs::path& prefix) {
  const std::string from = (test::small_model() / "tokens").string();
  fs::copy_file(from + ".idx", prefix.string() + ".idx");
  std::string bytes = read_text_file(from + ".bin");
  const std::size_t at = bytes.size() / 4 * 2;
  bytes[at] = bytes[at + 1] = '\x7f';
  write_text_file(prefix.string() + ".bin", bytes);
  return at / 2;
}

/// What training throws, on one rank or as all of two throw it.
std::string failure_of(const test::SmallRun& small, int ranks) {
  std::vector<std::string> errors(static_cast<std::size_t>(ranks));
  run_local_ranks(ranks, [&](const Communicator& world) {
    Heartbeat heartbeat;
    try {
      train(small.config, small.model, world, heartbeat, kSilent, make_cpu_device());
    } catch (const Error& error) {
      errors[static_cast<std::size_t>(world.rank())] =
          fmt::format("{}: {}", static_cast<int>(error.code()), error.what());
    }
  });
  for (const std::string& error : errors) CHECK(error == errors[0]);
  return errors[0];
}

TEST_CASE("a bad token ends the run with the last whole step saved, on every rank") {
  for (const int ranks : {1, 2}) {
    INFO(ranks << " ranks");
    const test::TemporaryFolder folder;
    const auto step =
        static_cast<std::int64_t>((write_bad_tokens(folder / "bad") - 1) / 32 / 4);  // done before it
    const auto run = make_small_run(
        folder / "run", SmallRunKind::train,
        {"data.tokens=[" + (folder / "bad").string() + "]", "data.shuffle=false", "train.steps=50",
         "checkpoint.every=4", "checkpoint.keep=1", "checkpoint.async=false", "train.validate_every=0"});
    REQUIRE(step % 4 != 0);
    CHECK_THAT(failure_of(run, ranks),
               ContainsSubstring("65: ") && ContainsSubstring("bad.bin: token id 32639 at document") &&
                   ContainsSubstring(fmt::format("; the state of step {} is saved", step)));
    // And what was there stays, although one is to be kept.
    CHECK(checkpoints_of(folder / "run") ==
          std::set<std::string>{fmt::format("step-{}", step / 4 * 4), fmt::format("step-{}", step)});
    CHECK(test::read_metrics(folder / "run").size() == static_cast<std::size_t>(step));
  }
}

TEST_CASE("a bad token of held-out text ends the run with the step before it saved and in the metrics") {
  for (const int ranks : {1, 2}) {
    INFO(ranks << " ranks");
    const test::TemporaryFolder folder;
    write_bad_tokens(folder / "bad");
    const auto run = make_small_run(folder / "run", SmallRunKind::train,
                                    {"data.validation=[" + (folder / "bad").string() + "]",
                                     "checkpoint.every=0", "train.validate_every=5"});
    CHECK_THAT(failure_of(run, ranks),
               ContainsSubstring("token id 32639") && ContainsSubstring("the state of step 5 is saved"));
    CHECK(checkpoints_of(folder / "run") == std::set<std::string>{"step-5"});
    CHECK(test::read_metrics(folder / "run").size() == 5);
  }
}

TEST_CASE("a step that is not finite ends the run with the step before it saved, and goes on from there") {
  for (const int ranks : {1, 2}) {
    INFO(ranks << " ranks");
    const test::TemporaryFolder folder;
    const std::vector<std::string> overrides{"train.learning_rate.peak=100", "train.learning_rate.final=100",
                                             "train.steps=60", "checkpoint.every=0"};
    const auto run = make_small_run(folder / "run", SmallRunKind::train, overrides);
    const std::string error = failure_of(run, ranks);
    CHECK_THAT(error, ContainsSubstring("65: step ") && ContainsSubstring(" is not finite (samples ") &&
                          ContainsSubstring("no update was made") &&
                          ContainsSubstring("values that are not finite: gradient of model."));
    const std::size_t steps = test::read_metrics(folder / "run").size();
    CHECK_THAT(error, ContainsSubstring(fmt::format("the state of step {} is saved", steps)));
    CHECK(checkpoints_of(folder / "run") == std::set<std::string>{fmt::format("step-{}", steps)});
    CHECK(failure_of(run, ranks) == error);  // the same step, again
  }
}

TEST_CASE("weights that an update broke are named, and not saved") {
  const test::TemporaryFolder folder;
  auto run = make_small_run(folder / "run", SmallRunKind::train, {"checkpoint.every=0"});
  run.config.train.optimizer.weight_decay = 1e300;  // more than a configuration may say
  CHECK_THAT(failure_of(run, 1), ContainsSubstring("step 2: the loss is not finite") &&
                                     ContainsSubstring("values that are not finite: parameter model.") &&
                                     ContainsSubstring("the state of step 1 is not saved: step 1: "));
  CHECK(checkpoints_of(folder / "run").empty());
}

TEST_CASE("moments that are not finite are not saved, and not taken from a checkpoint") {
  Memory m;
  const ModelConfig model = read_hub_config(test::small_model());
  const test::TemporaryFolder folder;
  const Communicator alone = make_self_communicator();
  CheckpointSaver saver({folder.path(), 5, false}, model, {}, test::quiet_context());
  saver.save({1}, *m.states);
  m.spoil(Role::optimizer, kSecondMoment, "model.norm.weight", kInf);
  CHECK_THROWS_WITH(saver.save({2}, *m.states),
                    ContainsSubstring("step 2: adam.v.model.norm.weight holds values that are not finite"));
  CHECK_FALSE(fs::exists(folder / "step-2"));
  CHECK(resume_training(folder.path(), model, {}, *m.states, alone, kSilent)->step == 1);
}

}  // namespace
}  // namespace farskip
