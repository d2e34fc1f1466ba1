// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <exception>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "comm/communicator_impl.h"
#include "endpoint.h"
#include "farskip/base/heartbeat.h"
#include "operation.h"

namespace farskip {

/// What one rank has in flight, in all groups that come from one world. It is shared by them because a rank
/// that waits in one group must go on serving the others: their second halves and sums are its work.
class Progress {
 public:
  /// `heartbeat`, which may be absent, hears of every wait.
  explicit Progress(Heartbeat* heartbeat = nullptr) : heartbeat_(heartbeat) {}
  Heartbeat* heartbeat() const { return heartbeat_; }
  void add(HostOperation* operation) {
    in_flight_.push_back(operation);
    ++outstanding_;
  }
  void remove(HostOperation* operation);
  /// Advances everything in flight. Throws the error of the first that failed, then and ever after.
  void advance();
  /// For kernels: does nothing off the own thread, and keeps the error for the next call.
  void advance_quietly() noexcept;
  void check_usable() const;
  /// Keeps the first error.
  void fail(std::exception_ptr error) noexcept;
  bool on_own_thread() const { return std::this_thread::get_id() == thread_; }
  void count_returned() { --outstanding_; }
  /// Whether every collective that was started has been waited for.
  bool idle() const { return outstanding_ == 0; }

 private:
  Heartbeat* const heartbeat_;
  const std::thread::id thread_ = std::this_thread::get_id();
  std::vector<HostOperation*> in_flight_;
  int outstanding_ = 0;
  std::exception_ptr error_;
};

class HostCommunicator final : public CommunicatorImpl {
 public:
  HostCommunicator(std::unique_ptr<Endpoint> endpoint, std::shared_ptr<Progress> progress);

  int rank() const override { return endpoint_->rank(); }
  int size() const override { return endpoint_->size(); }
  std::string name() const override { return endpoint_->name(); }
  Heartbeat* heartbeat() const override { return progress_->heartbeat(); }
  CollectiveOperation* start(const Collective& collective) override;
  bool test(CollectiveOperation* operation) override;
  void wait(CollectiveOperation* operation) override;
  void drop(CollectiveOperation* operation) noexcept override;
  void poll() noexcept override { progress_->advance_quietly(); }
  std::shared_ptr<CommunicatorImpl> split(int color, int key, const std::string& name) override;

 private:
  HostOperation* begin(const Collective& collective);
  void hand_back(HostOperation* operation);
  /// Tells the peers, then throws on.
  template <class Action>
  void guard(Action action);

  std::unique_ptr<Endpoint> endpoint_;
  std::shared_ptr<Progress> progress_;
  std::vector<std::unique_ptr<HostOperation>> operations_;
  std::vector<HostOperation*> idle_;
  std::uint64_t num_started_ = 0;
  int num_splits_ = 0;
};

}  // namespace farskip
