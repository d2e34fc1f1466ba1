// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <chrono>
#include <functional>
#include <new>
#include <thread>

#include "comm/collective_errors.h"
#include "suite.h"

namespace farskip::test {

void check_gather_text(const Communicator& world) {
  // Empty, with a NUL, long; and everyone empty.
  const auto text_of = [](int rank) {
    if (rank % 3 == 0) return std::string();
    return rank % 3 == 1 ? std::string("a\0b", 3) : std::string(10'000 + static_cast<std::size_t>(rank), 'x');
  };
  const std::vector<std::string> texts = all_gather_text(world, text_of(world.rank()));
  expect(texts.size() == static_cast<std::size_t>(world.size()), "{} texts", texts.size());
  for (int r = 0; r < world.size(); ++r)
    expect(texts[static_cast<std::size_t>(r)] == text_of(r), "text of rank {} differs", r);
  for (const std::string& text : all_gather_text(world, "")) expect(text.empty(), "text from nowhere");
}

namespace {

template <class E>
std::exception_ptr made(const E& error) {
  return std::make_exception_ptr(error);
}

std::string prefix(const Communicator& world, int rank) {
  return world.size() == 1 ? "" : fmt::format("rank {}: ", rank);
}

/// What is said of memory that ran out.
std::string out_of_memory() {
  try {
    try {
      throw std::bad_alloc();
    } catch (...) {
      rethrow_as_error();
    }
  } catch (const Error& error) {
    return error.what();
  }
}

/// All ranks throw an E of this code and message, and can go on afterwards.
template <class E>
void expect_thrown(const Communicator& world, const std::exception_ptr& mine, ExitCode code,
                   const std::string& message) {
  bool thrown = false;
  try {
    throw_together(world, mine);
  } catch (const E& e) {
    thrown = true;
    expect(e.code() == code, "exit code {}", static_cast<int>(e.code()));
    expect(e.what() == message, "message {}, expected {}", e.what(), message);
  }
  expect(thrown, "nothing of this type was thrown for {}", message);
  world.barrier();
}

}  // namespace

void check_throw_together(const Communicator& world) {
  throw_together(world, nullptr);
  const int last = world.size() - 1, me = world.rank();
  expect_thrown<UserError>(world, me == last ? made(DataError("bad bytes")) : nullptr, ExitCode::bad_data,
                           prefix(world, last) + "bad bytes");
  // The lowest rank's, whatever else there is.
  const auto each = made(UsageError(fmt::format("of {}", me)));
  expect_thrown<UserError>(world, me >= last / 2 ? each : nullptr, ExitCode::usage,
                           fmt::format("{}of {}", prefix(world, last / 2), last / 2));
  expect_thrown<InternalError>(world, me == last ? made(InternalError("broken")) : nullptr,
                               ExitCode::internal, prefix(world, last) + "broken");
  expect_thrown<Error>(world, me == 0 ? made(Error(ExitCode::resumable, "later")) : nullptr,
                       ExitCode::resumable, prefix(world, 0) + "later");
  if (world.size() == 1) return;  // as they are
  expect_thrown<UserError>(world, me == last ? made(std::bad_alloc()) : nullptr, ExitCode::io,
                           prefix(world, last) + out_of_memory());
  expect_thrown<Error>(world, me == last ? made(std::runtime_error("")) : nullptr, ExitCode::internal,
                       prefix(world, last));
  expect_thrown<Error>(world, me == last ? made(7) : nullptr, ExitCode::internal,
                       prefix(world, last) + "unknown error");
}

void check_work_together(const Communicator& world) {
  using namespace std::chrono_literals;
  const int last = world.size() - 1, me = world.rank();
  std::atomic<bool> done = false;
  // Only the last rank works, longer than a round takes; nobody returns before it is done.
  const std::function<void()> work = [&] {
    std::this_thread::sleep_for(150ms);
    done = true;
  };
  const auto before = std::chrono::steady_clock::now();
  work_together(world, "work", me == last ? work : nullptr);
  expect(std::chrono::steady_clock::now() - before > 100ms, "rank {} did not wait", me);
  expect(done == (me == last), "work of another rank was done here");
  const std::function<void()> fail = [] { throw DataError("bad bytes"); };
  bool thrown = false;
  try {
    work_together(world, "work", me == last ? fail : nullptr);
  } catch (const UserError& error) {
    thrown = error.code() == ExitCode::bad_data;
  }
  expect(thrown, "the error of the last rank was not thrown on rank {}", me);
  int asked = 0;
  wait_for_all(world, "a number of rounds", [&] { return ++asked > me; });
  expect(asked > me, "asked {} times", asked);
}

}  // namespace farskip::test
