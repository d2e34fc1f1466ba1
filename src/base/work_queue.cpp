// SPDX-License-Identifier: Apache-2.0
#include "base/work_queue.h"

#include <utility>

namespace farskip {

WorkQueue::~WorkQueue() {
  {
    const std::scoped_lock lock(mutex_);
    waiting_.clear();
    is_ending_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void WorkQueue::post(std::function<void()> work) {
  {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return error_ || waiting_.size() < most_waiting_; });
    rethrow();
    waiting_.push_back(std::move(work));
  }
  changed_.notify_all();
}

void WorkQueue::finish() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return error_ || (waiting_.empty() && !is_working_); });
  rethrow();
}

void WorkQueue::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return is_ending_ || (!error_ && !waiting_.empty()); });
    if (is_ending_) return;
    std::function<void()> work = std::move(waiting_.front());
    waiting_.pop_front();
    is_working_ = true;
    lock.unlock();
    std::exception_ptr error;
    try {
      work();
    } catch (...) {
      error = std::current_exception();
    }
    work = nullptr;  // what it holds goes before others wait for its place
    lock.lock();
    is_working_ = false;
    error_ = error;
    changed_.notify_all();
  }
}

void WorkQueue::rethrow() const {
  if (error_) std::rethrow_exception(error_);
}

}  // namespace farskip
