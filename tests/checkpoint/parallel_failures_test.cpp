// SPDX-License-Identifier: Apache-2.0
// What becomes of a checkpoint of several ranks when one of them fails.

#include <cstdlib>
#include <cstring>
#include <thread>

#include "rank_memory.h"

namespace farskip {
namespace {

using namespace test;

/// Notes what `body` throws on this rank: "exit code: message".
template <class Body>
void note_error(const Communicator& world, std::vector<std::string>& errors, const Body& body) {
  try {
    body();
  } catch (const Error& e) {
    errors[static_cast<std::size_t>(world.rank())] =
        fmt::format("{}: {}", static_cast<int>(e.code()), e.what());
  }
}

TEST_CASE("a rank that fails fails the save for all, with one error, and leaves nothing behind") {
  const RankLayout layout{4, 2, true};
  for (const bool asynchronous : {false, true})
    for (const char* fault : {"ckpt.begin:0", "ckpt.shard:0", "ckpt.shard:1", "ckpt.shard:3",
                              "ckpt.manifest:0", "ckpt.rename:0"}) {
      INFO(fault << (asynchronous ? ", asynchronous" : ""));
      const test::TemporaryFolder folder;
      save_on(layout, folder.path(), 1);
      std::vector<std::string> errors(4);
      on_ranks(layout, folder.path(), asynchronous,
               [&](const Communicator& world, Rank& rank, CheckpointSaver& saver) {
                 rank.fill();
                 if (world.rank() == 0) ::setenv("FARSKIP_FAULT", fmt::format("{}:error", fault).c_str(), 1);
                 world.barrier();
                 note_error(world, errors, [&] {
                   saver.save(state_of(2), *rank.states);
                   saver.wait();
                 });
                 world.barrier();
                 if (world.rank() != 0) return;
                 ::unsetenv("FARSKIP_FAULT");
                 expect(names_in(folder.path()) == std::set<std::string>{"latest", "step-1"}, "left behind");
               });
      const std::string prefix = fmt::format("74: rank {}: ", fault[std::strlen(fault) - 1]);
      CHECK_THAT(errors[0], ContainsSubstring(prefix) && ContainsSubstring("asked for by FARSKIP_FAULT"));
      for (const std::string& error : errors) CHECK(error == errors[0]);
      check_content(folder / "step-1");
    }
}

TEST_CASE("after a failed save the same ranks can save again") {
  const test::TemporaryFolder folder;
  on_ranks({2, 2, false}, folder.path(), true,
           [&](const Communicator& world, Rank& rank, CheckpointSaver& s) {
             rank.fill();
             if (world.rank() == 0) ::setenv("FARSKIP_FAULT", "ckpt.shard:1:error", 1);
             world.barrier();
             s.save(state_of(1), *rank.states);
             while (!s.written()) std::this_thread::yield();
             world.barrier();
             if (world.rank() == 0) ::unsetenv("FARSKIP_FAULT");
             std::vector<std::string> errors(2);
             note_error(world, errors, [&] { s.save(state_of(2), *rank.states); });  // of the save before
             expect(errors[static_cast<std::size_t>(world.rank())].find("ckpt.shard") != std::string::npos,
                    "no error");
             expect(!s.open(), "open after a failure");
             s.save(state_of(2), *rank.states);
             s.wait();
           });
  CHECK(names_in(folder.path()) == std::set<std::string>{"latest", "step-2"});
  check_content(folder / "step-2");
}

TEST_CASE("a step that exists is refused on every rank") {
  const test::TemporaryFolder folder;
  save_on({2, 1, true}, folder.path(), 1);
  std::vector<std::string> errors(2);
  on_ranks({2, 1, true}, folder.path(), false,
           [&](const Communicator& world, Rank& rank, CheckpointSaver& s) {
             note_error(world, errors, [&] { s.save(state_of(1), *rank.states); });
           });
  CHECK_THAT(errors[0], ContainsSubstring("64: rank 0: ") && ContainsSubstring("never overwritten"));
  CHECK(errors[1] == errors[0]);
}

TEST_CASE("an exception that passes gives up the save of several ranks, and completes that of one alone") {
  for (const int ranks : {1, 3}) {
    const test::TemporaryFolder folder;
    save_on({ranks, 1, true}, folder.path(), 1);
    CHECK_THROWS_WITH(on_ranks({ranks, 1, true}, folder.path(), true,
                               [&](const Communicator& world, Rank& rank, CheckpointSaver& saver) {
                                 rank.fill();
                                 saver.save(state_of(2), *rank.states);
                                 while (!saver.written()) std::this_thread::yield();
                                 world.barrier();
                                 if (world.rank() == ranks - 1) throw DataError("loss is not finite");
                                 world.barrier();
                               }),
                      "loss is not finite");
    if (ranks == 1)
      CHECK(names_in(folder.path()) == std::set<std::string>{"latest", "step-1", "step-2"});
    else
      CHECK(names_in(folder.path()) == std::set<std::string>{"latest", "step-1"});
    check_content(folder / (ranks == 1 ? "step-2" : "step-1"));
  }
}

TEST_CASE("ranks resume together: from nothing, past a damaged checkpoint, and not with another seed") {
  const test::TemporaryFolder folder;
  const RankLayout layout{4, 4, true};
  std::vector<std::string> errors(4);
  const auto resume = [&](const std::string& seed, std::optional<TrainingState> expected) {
    on_ranks(layout, folder.path(), false, [&](const Communicator& world, Rank& rank, CheckpointSaver&) {
      note_error(world, errors, [&] {
        expect(resume_training(folder.path(), model(), {{"seed", seed}}, *rank.states, world, kQuiet) ==
                   expected,
               "another state");
        if (expected) rank.check();
      });
    });
  };
  resume("1", std::nullopt);
  save_on({3, 1, true}, folder.path(), 1);
  save_on({2, 2, false}, folder.path(), 2);
  resume("1", std::nullopt);
  CHECK_THAT(errors[3], ContainsSubstring("64: rank 0: ") && ContainsSubstring("seed: checkpoint 7, now 1"));
  for (const std::string& error : errors) CHECK(error == errors[0]);
  const fs::path shard = folder / "step-2/optimizer-00002-of-00002.safetensors";
  std::string bytes = read_text_file(shard);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  write_text_file(shard, bytes);
  resume("7", state_of(1));
  CHECK_FALSE(fs::exists(folder / "step-2"));  // set aside
  CHECK(names_in(folder.path()).size() == 3);
}

TEST_CASE("old checkpoints are removed once, by rank 0, after the commit") {
  const test::TemporaryFolder folder;
  const RankLayout layout{2, 2, true};
  run_local_ranks(2, [&](const Communicator& world) {
    Rank rank(layout, world.rank());
    rank.fill();
    CheckpointSaver saver({folder.path(), 2, true}, model(), {}, quiet_context(Mesh(world, layout.expert)));
    for (const std::int64_t step : {1, 2, 3}) saver.save(state_of(step), *rank.states);
    saver.wait();
  });
  CHECK(names_in(folder.path()) == std::set<std::string>{"latest", "step-2", "step-3"});
}

}  // namespace
}  // namespace farskip
