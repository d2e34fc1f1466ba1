#include "host_communicator.h"

#include <algorithm>
#include <utility>

#include "farskip/base/stop_signals.h"

namespace farskip {

void Progress::remove(HostOperation* operation) {
  std::erase(in_flight_, operation);
}

void Progress::check_usable() const {
  if (error_) std::rethrow_exception(error_);
}

void Progress::fail(std::exception_ptr error) noexcept {
  if (!error_) error_ = std::move(error);
}

void Progress::advance() {
  check_usable();
  try {
    std::erase_if(in_flight_, [](HostOperation* operation) { return operation->advance(); });
  } catch (...) {
    fail(std::current_exception());
    throw;
  }
}

void Progress::advance_quietly() noexcept {
  if (!on_own_thread() || in_flight_.empty() || error_) return;
  try {
    advance();
  } catch (...) {  // kept by fail()
  }
}

HostCommunicator::HostCommunicator(std::unique_ptr<Endpoint> endpoint, std::shared_ptr<Progress> progress)
    : endpoint_(std::move(endpoint)), progress_(std::move(progress)) {}

template <class Action>
void HostCommunicator::guard(Action action) {
  FARSKIP_CHECK(progress_->on_own_thread(), "{}: called from a thread that did not make it", name());
  try {
    action();
  } catch (const std::exception& error) {
    progress_->fail(std::current_exception());
    endpoint_->fail(error.what());
    throw;
  }
}

CollectiveOperation* HostCommunicator::start(const Collective& collective) {
  HostOperation* operation = nullptr;
  guard([&] {
    progress_->check_usable();
    if (idle_.empty()) {
      operations_.push_back(std::make_unique<HostOperation>(*endpoint_));
      idle_.reserve(operations_.size());
      idle_.push_back(operations_.back().get());
    }
    operation = idle_.back();
    idle_.pop_back();
    operation->start(collective, num_started_++);
    progress_->add(operation);
    progress_->advance();
  });
  return operation;
}

bool HostCommunicator::test(CollectiveOperation* operation) {
  auto* const own = static_cast<HostOperation*>(operation);
  guard([&] { progress_->advance(); });
  if (!own->finished()) return false;
  hand_back(own);
  return true;
}

void HostCommunicator::wait(CollectiveOperation* operation) {
  auto* const own = static_cast<HostOperation*>(operation);
  const HeartbeatWait watched(progress_->heartbeat(), own->name());
  guard([&] {
    const auto since = std::chrono::steady_clock::now();
    for (;;) {
      const std::uint64_t seen = endpoint_->changes();
      progress_->advance();
      if (own->finished()) return;
      leave_if_asked();
      endpoint_->wait_for_change(seen, since);
    }
  });
  hand_back(own);
}

void HostCommunicator::hand_back(HostOperation* operation) {
  progress_->count_returned();
  idle_.push_back(operation);
}

/// The operation is not used again: the transport may still hold its buffers.
void HostCommunicator::drop(CollectiveOperation* operation) noexcept {
  auto* const own = static_cast<HostOperation*>(operation);
  own->abandon();
  progress_->remove(own);
  const char* const reason = "a collective was started and never waited for";
  progress_->fail(std::make_exception_ptr(InternalError(reason)));
  endpoint_->fail(reason);
}

std::shared_ptr<CommunicatorImpl> HostCommunicator::split(int color, int key, const std::string& name) {
  FARSKIP_CHECK(progress_->idle(), "{}: split while collectives are in flight", this->name());
  const int own[2] = {color, key};
  std::vector<int> all(2 * static_cast<std::size_t>(size()));
  std::vector<std::int64_t> offsets(static_cast<std::size_t>(size()) + 1);
  for (std::size_t p = 0; p < offsets.size(); ++p) offsets[p] = 2 * static_cast<std::int64_t>(p);
  Collective gather;
  gather.kind = Collective::Kind::all_gather;
  gather.send = own;
  gather.receive = all.data();
  gather.offsets = offsets.data();
  gather.element_bytes = sizeof(int);
  wait(start(gather));

  SplitPlan plan;
  plan.color = color;
  plan.number = num_splits_++;
  plan.name = name;
  for (int p = 0; p < size(); ++p)
    if (all[2 * p] == color) plan.members.push_back(p);
  std::stable_sort(plan.members.begin(), plan.members.end(),
                   [&](int a, int b) { return all[2 * a + 1] < all[2 * b + 1]; });
  const auto place = std::find(plan.members.begin(), plan.members.end(), rank());
  plan.position = static_cast<int>(place - plan.members.begin());
  std::shared_ptr<CommunicatorImpl> group;
  guard([&] { group = std::make_shared<HostCommunicator>(endpoint_->split(plan), progress_); });
  return group;
}

}  // namespace farskip
