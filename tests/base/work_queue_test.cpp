// SPDX-License-Identifier: Apache-2.0
#include "base/work_queue.h"

#include <atomic>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <vector>

#include "support/catch.h"

using namespace farskip;

TEST_CASE("work is done in order, on another thread, and all of it before finish returns") {
  std::vector<int> done;
  std::thread::id worker;
  WorkQueue queue(2);
  for (int i = 0; i < 100; ++i)
    queue.post([&, i] {
      worker = std::this_thread::get_id();
      done.push_back(i);
    });
  queue.finish();
  REQUIRE(done.size() == 100);
  for (int i = 0; i < 100; ++i) CHECK(done[static_cast<std::size_t>(i)] == i);
  CHECK(worker != std::this_thread::get_id());
}

TEST_CASE("no more work waits than was allowed") {
  std::atomic<int> begun = 0, posted = 0;
  std::atomic<bool> may_go = false;
  WorkQueue queue(3);
  const auto wait = [&] {
    ++begun;
    may_go.wait(false);
  };
  queue.post(wait);
  while (begun == 0) std::this_thread::yield();
  std::thread poster([&] {
    for (int i = 0; i < 4; ++i) {
      queue.post(wait);
      ++posted;
    }
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  CHECK(begun == 1);
  CHECK(posted <= 3);
  may_go = true;
  may_go.notify_all();
  poster.join();
  queue.finish();
  CHECK(begun == 5);
}

TEST_CASE("what work throws comes out of the next post or of finish, and nothing is done after it") {
  int done = 0;
  WorkQueue queue(1);
  queue.post([] { throw std::runtime_error("disk full"); });
  CHECK_THROWS_WITH(
      [&] {
        for (int i = 0; i < 3; ++i) queue.post([&] { ++done; });
      }(),
      "disk full");
  CHECK_THROWS_WITH(queue.finish(), "disk full");
  CHECK(done == 0);
}

TEST_CASE("a queue that is left drops what waits and what that holds") {
  const auto held = std::make_shared<int>(1);
  std::atomic<bool> begun = false;
  int done = 0;
  {
    WorkQueue queue(8);
    queue.post([&] {
      begun = true;
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    });
    while (!begun) std::this_thread::yield();
    for (int i = 0; i < 5; ++i) queue.post([&done, held] { ++done; });
  }
  CHECK(done == 0);
  CHECK(held.use_count() == 1);
}
