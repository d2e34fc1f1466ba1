// SPDX-License-Identifier: Apache-2.0
#include "host_communicator.h"

#include <algorithm>
#include <utility>

#include "base/stop_signals.h"
#include "reduce.h"

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

namespace {

/// A large all-reduce travels in parts. Its second half begins only when this rank looks after it (between
/// tiles of a kernel); meanwhile the link carries the first halves of the other parts.
std::int64_t num_parts(const Collective& collective, int size) {
  constexpr std::int64_t least_bytes = 60'000, most_parts = 4;  // a message to one peer
  if (collective.kind != Collective::Kind::all_reduce || size == 1) return 1;
  return std::clamp<std::int64_t>(collective.count * element_bytes(collective.element) / size / least_bytes,
                                  1, most_parts);
}

/// Elements [first, end) of an all-reduce.
Collective part_of(Collective all_reduce, std::int64_t first, std::int64_t end) {
  const std::int64_t offset = first * element_bytes(all_reduce.element);
  all_reduce.send = static_cast<const std::byte*>(all_reduce.send) + offset;
  all_reduce.receive = static_cast<std::byte*>(all_reduce.receive) + offset;
  all_reduce.count = end - first;
  return all_reduce;
}

}  // namespace

HostOperation* HostCommunicator::begin(const Collective& collective) {
  if (idle_.empty()) {
    operations_.push_back(std::make_unique<HostOperation>(*endpoint_));
    idle_.reserve(operations_.size());
    idle_.push_back(operations_.back().get());
  }
  HostOperation* const operation = idle_.back();
  idle_.pop_back();
  operation->start(collective, num_started_++);
  progress_->add(operation);
  return operation;
}

CollectiveOperation* HostCommunicator::start(const Collective& collective) {
  HostOperation* operation = nullptr;
  guard([&] {
    progress_->check_usable();
    const std::int64_t parts = num_parts(collective, size());
    operation = begin(parts == 1 ? collective : part_of(collective, 0, collective.count / parts));
    HostOperation* last = operation;
    for (std::int64_t i = 1; i < parts; ++i) {
      last->set_next(
          begin(part_of(collective, collective.count * i / parts, collective.count * (i + 1) / parts)));
      last = last->next();
    }
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
  for (; operation != nullptr; operation = operation->next()) {
    progress_->count_returned();
    idle_.push_back(operation);
  }
}

/// The operation is not used again: the transport may still hold its buffers.
void HostCommunicator::drop(CollectiveOperation* operation) noexcept {
  for (auto* part = static_cast<HostOperation*>(operation); part != nullptr; part = part->next()) {
    part->abandon();
    progress_->remove(part);
  }
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
