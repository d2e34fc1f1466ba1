// SPDX-License-Identifier: Apache-2.0
// Whole training runs on several ranks, ended and gone on with on other ones.

#include <csignal>
#include <thread>

#include "runs.h"
#include "support/catch.h"
#include "support/json.h"
#include "support/run_files.h"
#include "support/states.h"

namespace farskip::test {
namespace {

const Layout kFour{2, 2, true};

TEST_CASE("chunks are chosen once a run, and later starts keep to the choice") {
  const TemporaryFolder folder;
  const fs::path run = folder / "run", kept = run / "expert_chunks.txt";
  train_run(make_run(run, {.expert = 2}, 3, {"schedule.expert_chunks=auto"}));
  const std::string chosen = read_text_file(kept);
  CHECK((chosen == "1\n" || chosen == "2\n"));  // by times, which differ from run to run
  // Whatever it says is what is run: here a number that no plan would have come to.
  write_text_file(kept, "3\n");
  const std::string costs = read_text_file(run / "costs.txt");
  train_run(make_run(run, {.expert = 2}, 6, {"schedule.expert_chunks=auto"}));
  CHECK(read_text_file(kept) == "3\n");
  CHECK(read_text_file(run / "costs.txt") == costs);  // nothing was measured again
  const fs::path told = folder / "told";
  train_run(make_run(told, {.expert = 2}, 3, {"schedule.expert_chunks=" + chosen.substr(0, 1)}));
  train_run(make_run(told, {.expert = 2}, 6, {"schedule.expert_chunks=3"}));
  check_metrics(run, told, 0);
  CHECK_FALSE(fs::exists(told / "expert_chunks.txt"));
  // With all experts on one rank there is nothing to choose.
  train_run(make_run(folder / "data", {.data = 2}, 3, {"schedule.expert_chunks=auto"}));
  CHECK_FALSE(fs::exists(folder / "data" / "expert_chunks.txt"));
}

TEST_CASE("a run that ended is gone on with on the same ranks to the bit, and on others to rounding") {
  const TemporaryFolder folder;
  train_run(make_run(folder / "whole", kFour, 6));
  REQUIRE(train_run(make_run(folder / "half", kFour, 3)).step == 3);
  // Only their settings, train.steps among them, tell the two apart.
  CHECK(checkpoint_difference(checkpoint_folder(folder / "half", 3),
                              checkpoint_folder(folder / "whole", 3)) == 0);
  for (const Layout& layout : {kFour, Layout{1, 1, false}, Layout{2, 1, false}, Layout{2, 1, true},
                               Layout{4, 1, true}, Layout{1, 2, true}}) {
    INFO(layout.text());
    const fs::path run_dir = folder / layout.text();
    fs::copy(folder / "half", run_dir, fs::copy_options::recursive);
    const Run run = make_run(folder / "here", layout, 6, {fmt::format("run_dir='{}'", run_dir.string())});
    CHECK(train_run(run).step == 6);
    const bool same = layout.ranks() == kFour.ranks() && layout.expert == kFour.expert;
    check_metrics(run_dir, folder / "whole", same ? 0 : 1e-5);
    if (same)
      CHECK(checkpoint_bytes(run_dir, 6) == checkpoint_bytes(folder / "whole", 6));
    else
      CHECK(checkpoint_difference(checkpoint_folder(run_dir, 6), checkpoint_folder(folder / "whole", 6)) <
            1e-3);
  }
}

/// `tolerance`: of a run that goes on on one rank.
void check_resume(const std::vector<std::string>& optimizer, double tolerance) {
  const TemporaryFolder folder;
  train_run(make_run(folder / "whole", kFour, 6, optimizer));
  train_run(make_run(folder / "half", kFour, 3, optimizer));
  train_run(make_run(folder / "half", kFour, 6, optimizer));
  check_metrics(folder / "half", folder / "whole", 0);
  CHECK(checkpoint_bytes(folder / "half", 6) == checkpoint_bytes(folder / "whole", 6));
  train_run(make_run(folder / "moved", kFour, 3, optimizer));
  train_run(make_run(folder / "moved", {1, 1, false}, 6, optimizer));
  check_metrics(folder / "moved", folder / "whole", tolerance);
}

TEST_CASE("a run goes on with another level of ZeRO to rounding, and with its own to the bit") {
  const TemporaryFolder folder;
  for (const std::string moments : {"fp32", "bf16"}) {
    const std::vector<std::string> overrides{"train.optimizer.moments=" + moments};
    const auto layout = [](int zero) { return Layout{2, 2, zero}; };
    const auto name = [&](int zero) { return folder / fmt::format("{}-{}", moments, zero); };
    for (const int zero : {0, 1, 2, 3}) {
      train_run(make_run(name(zero), layout(zero), 6, overrides));
      if (zero < 2) continue;
      const fs::path half = folder / fmt::format("half-{}-{}", moments, zero);
      train_run(make_run(half, layout(zero), 3, overrides));
      train_run(make_run(half, layout(zero), 6, overrides));
      check_metrics(half, name(zero), 0);
      CHECK(checkpoint_bytes(half, 6) == checkpoint_bytes(name(zero), 6));
    }
    // Gathered or not, a weight is the same; sums of several micro-batches are taken in another order.
    check_metrics(name(3), name(2), 0);
    CHECK(checkpoint_difference(checkpoint_folder(name(3), 6), checkpoint_folder(name(2), 6)) == 0);
    for (const auto& [from, to] : {std::pair{0, 3}, {3, 0}, {1, 2}, {3, 1}}) {
      INFO(moments << ", ZeRO-" << from << " and then " << to);
      const fs::path moved = folder / fmt::format("moved-{}-{}-{}", moments, from, to);
      train_run(make_run(moved, layout(from), 3, overrides));
      train_run(make_run(moved, layout(to), 6, overrides));
      check_metrics(moved, name(0), 1e-5);
    }
  }
}

TEST_CASE("averaged weights are the same on every layout, and a run goes on with them to the bit") {
  const TemporaryFolder folder;
  const auto run = [&](const std::string& name, const Layout& layout, std::int64_t steps) {
    train_run(make_run(folder / name, layout, steps,
                       {"train.average_decay=0.6", "train.validate_every=1",
                        fmt::format("parallel.tensor={}", layout.tensor)}));
  };
  run("one", {}, 6);
  for (const Layout& layout : {Layout{.expert = 2, .data = 2}, Layout{.expert = 2, .data = 2, .zero = 1},
                               Layout{.data = 2, .zero = 2}, Layout{.expert = 2, .data = 2, .zero = 3},
                               Layout{.data = 2, .zero = 1, .tensor = 2}}) {
    INFO(layout.text());
    run(layout.text(), layout, 6);
    check_metrics(folder / layout.text(), folder / "one", 1e-5);
    run("parts " + layout.text(), layout, 3);
    run("parts " + layout.text(), layout, 6);
    check_metrics(folder / ("parts " + layout.text()), folder / layout.text(), 0);
    CHECK(checkpoint_bytes(folder / ("parts " + layout.text()), 6) ==
          checkpoint_bytes(folder / layout.text(), 6));
  }
}

TEST_CASE("a run with Muon goes on after a resume to the bit, also from what another layout has kept") {
  check_resume({"train.optimizer.name=muon"}, 1e-5);
}

TEST_CASE(
    "a run with moments in bf16 goes on after a resume to the bit, also from what another layout has kept") {
  // Where sums differ in the last bit, one rounding in some ten thousand falls on the other side.
  check_resume({"train.optimizer.moments=bf16"}, 1e-5);
  check_resume({"train.optimizer.moments=bf16", "train.optimizer.name=muon"}, 1e-5);
}

TEST_CASE("moments may become bf16 at a resume, and f32 again") {
  const TemporaryFolder folder;
  const std::vector<std::string> low{"train.optimizer.moments=bf16"};
  train_run(make_run(folder / "run", kFour, 3));
  train_run(make_run(folder / "run", {1, 2, true}, 6, low));
  train_run(make_run(folder / "run", kFour, 9));
  train_run(make_run(folder / "wide", kFour, 9));
  const auto dtype = [&](std::int64_t step, const std::string& name) {
    return open_checkpoint(checkpoint_folder(folder / "run", step)).manifest().tensors.at(name).dtype;
  };
  for (const std::string kind : {"adam.m.", "adam.v."}) {
    CHECK(dtype(3, kind + "model.norm.weight") == DType::f32);
    CHECK(dtype(6, kind + "model.norm.weight") == DType::bf16);
    CHECK(dtype(9, kind + "model.norm.weight") == DType::f32);
  }
  CHECK(dtype(6, "model.norm.weight") == DType::f32);
  check_metrics(folder / "run", folder / "wide", 1e-3);
}

TEST_CASE("four ranks go on with what one rank made of what four ranks had saved") {
  const TemporaryFolder folder;
  train_run(make_run(folder / "whole", kFour, 9));
  train_run(make_run(folder / "moved", kFour, 3));
  train_run(make_run(folder / "moved", {1, 1, false}, 6));
  train_run(make_run(folder / "moved", kFour, 9));
  check_metrics(folder / "moved", folder / "whole", 1e-5);
}

/// Loads the newest checkpoint of `from` on a layout and saves it as step `step` of `to`.
void save_again(const ModelConfig& model, const Layout& layout, const fs::path& from, const fs::path& to,
                std::int64_t step) {
  on_ranks(layout.ranks(), [&](const Communicator& world) {
    const MeshPosition mesh{world.size(), world.rank(), layout.expert};
    const auto parameters = local_parameters(list_parameters(model), mesh, layout.zero);
    const auto states = make_weights(parameters);
    states->add(moments_of(parameters));
    auto state = resume_training(from, model, {}, *states, world, kQuiet);
    if (!state) throw std::runtime_error("nothing to resume from");
    state->step = step;
    CheckpointSaver saver({to, 10, true}, model, {}, quiet_context(Mesh(world, mesh.expert_size)));
    saver.save(*state, *states);
    saver.wait();
    return 0;
  });
}

TEST_CASE("from four ranks to one and back, weights and moments of a run keep every bit") {
  const TemporaryFolder folder;
  const Run run = make_run(folder / "run", kFour, 3);
  train_run(run);
  const fs::path saved = folder / "run" / "checkpoints";
  save_again(run.model, {1, 1, false}, saved, folder / "one", 4);
  save_again(run.model, kFour, folder / "one", folder / "four", 5);
  const Checkpoint a = open_checkpoint(saved / "step-3"), b = open_checkpoint(folder / "four" / "step-5");
  REQUIRE(a.manifest().tensors.size() == b.manifest().tensors.size());
  REQUIRE(a.manifest().tensors.size() > 100);
  for (const auto& [name, tensor] : a.manifest().tensors) {
    INFO(name);
    CHECK(same_bits(b.read(name), a.read(name)));
  }
}

TEST_CASE("a stop signal ends all ranks at the same step, with a checkpoint") {
  const TemporaryFolder folder;
  const fs::path metrics = folder / "run" / "metrics.jsonl";
  std::jthread signaller([&](const std::stop_token& given_up) {  // also where the run throws
    while (!fs::exists(metrics) || fs::file_size(metrics) == 0) {
      if (given_up.stop_requested()) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    std::raise(SIGUSR1);
  });
  const TrainResult stopped = train_run(make_run(folder / "run", {2, 1, true}, 2000, {"checkpoint.every=0"}));
  signaller.join();
  CHECK(stopped.stopped_early);
  CHECK(stopped.step < 2000);
  CHECK(fs::exists(checkpoint_folder(folder / "run", stopped.step)));
  CHECK(test::parse_json(read_text_file(folder / "run" / "exit.json"))["resumable"] == true);
  const TrainResult rest =
      train_run(make_run(folder / "run", {1, 2, false}, stopped.step + 2, {"checkpoint.every=0"}));
  CHECK(rest.step == stopped.step + 2);
  CHECK_FALSE(rest.stopped_early);
}

TEST_CASE("a loss that is not finite stops all ranks with one message") {
  const TemporaryFolder folder;
  const Run run = make_run(folder / "run", kFour, 60,
                           {"train.learning_rate.peak=100.0", "train.learning_rate.warmup_steps=0",
                            "train.optimizer.clip_grad_norm=0.0", "train.optimizer.weight_decay=1.0"});
  CHECK_THROWS_WITH(train_run(run), ContainsSubstring("finite") && ContainsSubstring("samples"));
}

TEST_CASE("ranks skip a step without targets together, and go on") {
  const TemporaryFolder folder;
  const std::int32_t padding = 9;
  std::vector<std::int32_t> tokens(16 * 16 + 1, padding);  // the first step's
  for (std::int32_t i = 0; i < 600; ++i) tokens.push_back(10 + i % 40);
  TokenFileWriter writer((folder / "t").string(), TokenType::u16);
  writer.add_document(tokens);
  writer.commit();
  const std::vector<std::string> overrides{"data.tokens=[" + (folder / "t").string() + "]",
                                           "data.shuffle=false", fmt::format("data.padding={}", padding)};
  train_run(make_run(folder / "one", {1, 1, false}, 3, overrides));
  train_run(make_run(folder / "four", {2, 2, true}, 3, overrides));
  const auto lines = read_metrics(folder / "four");
  REQUIRE(lines.size() == 3);
  CHECK(lines[0]["loss"].is_null());
  CHECK(lines[1]["loss"].is_number());
  const auto alone = read_metrics(folder / "one");
  CHECK(lines[2]["loss"].get<double>() == Catch::Approx(alone[2]["loss"].get<double>()).epsilon(1e-4));
}

}  // namespace
}  // namespace farskip::test
