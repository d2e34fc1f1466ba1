// SPDX-License-Identifier: Apache-2.0
#include <stdlib.h>

#include <atomic>
#include <thread>
#include <vector>

#include "comm/local.h"
#include "comm/mpi.h"
#include "suite.h"
#include "support/catch.h"

namespace farskip {
namespace {

/// The message of what `body` throws, which is to be an `E`.
template <class E, class Body>
std::string message_of(Body body) {
  try {
    body();
  } catch (const E& error) {
    return error.what();
  }
  return "nothing of this type was thrown";
}

TEST_CASE("every collective is right in the group of one") {
  for (const test::CommunicatorCase& each : test::communicator_cases()) {
    INFO(each.name);
    CHECK_NOTHROW(each.run(make_self_communicator()));
  }
}

TEST_CASE("every collective is right between 1, 2, 3, 4 and 8 threads") {
  for (const int size : {1, 2, 3, 4, 8}) {
    for (const test::CommunicatorCase& each : test::communicator_cases()) {
      INFO(size << " ranks: " << each.name);
      CHECK_NOTHROW(run_local_ranks(size, [&](const Communicator& world) { each.run(world); }));
    }
  }
}

TEST_CASE("a rank that throws ends the wait of the others, and its error is the one reported") {
  std::atomic<int> released = 0;
  const std::string message = message_of<DataError>([&] {
    run_local_ranks(3, [&](const Communicator& world) {
      if (world.rank() == 1) throw DataError("rank 1 has no data");
      try {
        world.barrier();
      } catch (const CommunicationError& error) {
        if (std::string(error.what()).find("rank 1 failed: rank 1 has no data") != std::string::npos)
          ++released;
        throw;
      }
    });
  });
  CHECK(message == "rank 1 has no data");
  CHECK(released == 2);
}

TEST_CASE("waiting for a rank that has left is an error") {
  const std::string message = message_of<CommunicationError>([] {
    run_local_ranks(2, [](const Communicator& world) {
      if (world.rank() == 0) world.barrier();
    });
  });
  CHECK_THAT(message, ContainsSubstring("rank 0 waits for rank 1, which has left"));
}

TEST_CASE("ranks that disagree about lengths are told both") {
  for (const int extra : {1, -1}) {
    const std::string message = message_of<InternalError>([&] {
      run_local_ranks(2, [&](const Communicator& world) {
        std::vector<float> data(static_cast<std::size_t>(world.rank() == 0 ? 8 : 8 + 2 * extra));
        world.all_reduce(std::span(data));
      });
    });
    CHECK_THAT(message, ContainsSubstring("the ranks call different collectives"));
  }
}

TEST_CASE("a collective that is never waited for hangs nobody and stops its communicator") {
  const auto drop = [](const Communicator& world) {
    std::vector<float> data(100);
    { const Pending dropped = world.start_all_reduce(std::span(data)); }
    world.barrier();
  };
  CHECK_THAT(message_of<InternalError>([&] { drop(make_self_communicator()); }),
             ContainsSubstring("never waited for"));
  CHECK_THAT(message_of<InternalError>([&] {
               run_local_ranks(3, [&](const Communicator& world) {
                 if (world.rank() == 2) return drop(world);
                 std::vector<float> data(100);
                 world.all_reduce(std::span(data));
                 world.barrier();
               });
             }),
             ContainsSubstring("never waited for"));
}

TEST_CASE("a collective replaced by another before it was waited for counts as dropped") {
  const Communicator world = make_self_communicator();
  Pending pending = world.start_barrier();
  Pending other = std::move(pending);
  CHECK(pending.finished());  // NOLINT: moved from, by contract finished
  pending = world.start_barrier();
  other.wait();
  pending.wait();
  pending = world.start_barrier();
  pending = Pending();
  CHECK_THROWS_AS(world.barrier(), InternalError);
}

TEST_CASE("only the thread that made a communicator may start collectives") {
  const Communicator world = make_self_communicator();
  std::string message;
  std::thread([&] { message = message_of<InternalError>([&] { world.barrier(); }); }).join();
  CHECK_THAT(message, ContainsSubstring("did not make it"));
}

TEST_CASE("splitting while something is in flight is refused") {
  const Communicator world = make_self_communicator();
  Pending pending = world.start_barrier();
  CHECK_THROWS_AS(world.split(0, 0, "part"), InternalError);
  pending.wait();
  CHECK_NOTHROW(world.split(0, 0, "part"));
}

TEST_CASE("wrong arguments are refused before anything is sent") {
  const Communicator world = make_self_communicator();
  std::vector<float> data(4);
  const std::vector<std::int64_t> short_offsets{0}, wrong_end{0, 3}, good{0, 4};
  CHECK_THROWS_AS(world.broadcast(std::span(data), 1), InternalError);
  CHECK_THROWS_AS(world.all_gather(std::span<const float>(data), short_offsets, std::span(data)),
                  InternalError);
  CHECK_THROWS_AS(world.all_gather(std::span<const float>(data), wrong_end, std::span(data)), InternalError);
  CHECK_NOTHROW(world.all_gather(std::span<const float>(data), good, std::span(data)));  // in place
  const std::vector<std::int32_t> no_rows{0, 0};
  CHECK_THROWS_AS(world.start_all_to_all(RowExchange{.send_offsets = no_rows.data()}), InternalError);
}

TEST_CASE("a build without MPI says so") {  // no_mpi.cpp is linked into this program
  CHECK_THAT(message_of<UsageError>([] { const MpiSession session; }), ContainsSubstring("has no MPI"));
}

TEST_CASE("a launcher is known by what it puts into the environment") {
  const auto variables = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"};
  for (const char* const variable : variables) ::unsetenv(variable);
  for (const char* const variable : variables) {
    INFO(variable);
    REQUIRE_FALSE(started_by_mpi_launcher());
    ::setenv(variable, "2", 1);
    CHECK(started_by_mpi_launcher());
    ::unsetenv(variable);
  }
}

}  // namespace
}  // namespace farskip
