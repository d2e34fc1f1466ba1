// SPDX-License-Identifier: Apache-2.0
#pragma once
// Work on a thread of its own, so that two things that wait for different parts of a machine overlap.

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>

namespace farskip {

/// A thread that does what it is given, in order. What waits holds memory, so that its number is bounded.
class WorkQueue {
 public:
  explicit WorkQueue(std::size_t most_waiting) : most_waiting_(most_waiting), thread_([this] { run(); }) {}
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;
  /// Waits for the work that has begun, and drops the rest.
  ~WorkQueue();

  /// Waits while `most_waiting` pieces of work wait. Throws what an earlier one has thrown: then nothing more
  /// is done.
  void post(std::function<void()> work);
  /// Waits until all is done; throws what it has thrown.
  void finish();

 private:
  void run();
  void rethrow() const;

  const std::size_t most_waiting_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> waiting_;
  bool is_working_ = false, is_ending_ = false;
  std::exception_ptr error_;
  std::thread thread_;  // last: it uses the others
};

}  // namespace farskip
