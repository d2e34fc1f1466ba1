// SPDX-License-Identifier: Apache-2.0
// Ranks as threads. A message is announced in its receiver's inbox and copied by the receiver, under the one
// lock of the world: nobody can leave with a buffer that another copies from.
#include "comm/local.h"

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <numeric>
#include <thread>

#include "host/host_communicator.h"

namespace farskip {
namespace {

struct Message {
  int source = 0, tag = 0;
  Outgoing content;
  bool taken = false;
};

struct World;

struct Group {
  std::shared_ptr<World> world;
  std::string name;
  std::vector<int> world_ranks;                                 // [size]
  std::vector<std::vector<Message*>> inbox;                     // [size], by receiver
  std::map<std::pair<int, int>, std::shared_ptr<Group>> parts;  // by (number of the split, color)
};

/// Everything here and in its groups is guarded by `mutex`.
struct World {
  std::mutex mutex;
  std::condition_variable changed;
  std::uint64_t changes = 0;
  std::string failure;                     // why nobody should wait any more
  int failed_rank = -1;                    // who failed first
  std::vector<bool> left;                  // [size] whose body has returned
  std::vector<std::exception_ptr> errors;  // [size]

  void announce() {
    ++changes;
    changed.notify_all();
  }
  void fail(int rank, const std::string& reason) {
    const std::lock_guard lock(mutex);
    if (failure.empty()) {
      failure = reason;
      failed_rank = rank;
    }
    announce();
  }
};

std::shared_ptr<Group> make_group(std::shared_ptr<World> world, std::string name,
                                  std::vector<int> world_ranks) {
  auto group = std::make_shared<Group>();
  group->world = std::move(world);
  group->name = std::move(name);
  group->inbox.resize(world_ranks.size());
  for (std::vector<Message*>& inbox : group->inbox) inbox.reserve(16 * world_ranks.size());
  group->world_ranks = std::move(world_ranks);
  return group;
}

class LocalExchange final : public Exchange {
 public:
  LocalExchange(Group& group, int rank)
      : group_(group), rank_(rank), messages_(group.world_ranks.size()), wanted_(group.world_ranks.size()) {}
  ~LocalExchange() override { abandon(); }

  void post(int tag, std::span<const Outgoing> out, std::span<Incoming> in) override {
    const std::lock_guard lock(group_.world->mutex);
    tag_ = tag;
    in_ = in;
    for (std::size_t p = 0; p < messages_.size(); ++p) {
      const bool is_peer = static_cast<int>(p) != rank_;
      const bool sends = is_peer && out[p].bytes != kNoMessage;
      messages_[p] = {rank_, tag, out[p], !sends};
      wanted_[p] = is_peer && in[p].capacity != kNoMessage;
      if (sends) group_.inbox[p].push_back(&messages_[p]);
    }
    group_.world->announce();
  }

  bool test() override {
    World& world = *group_.world;
    const std::lock_guard lock(world.mutex);
    if (!world.failure.empty()) throw CommunicationError(world.failure);
    bool done = true, took = false;
    for (std::size_t p = 0; p < messages_.size(); ++p) {
      if (wanted_[p] && take(static_cast<int>(p))) {
        wanted_[p] = false;
        took = true;
      }
      if (!wanted_[p] && messages_[p].taken) continue;
      done = false;
      if (world.left[group_.world_ranks[p]])
        throw CommunicationError(
            fmt::format("{}: rank {} waits for rank {}, which has left", group_.name, rank_, p));
    }
    if (took) world.announce();
    return done;
  }

  void abandon() noexcept override {
    const std::lock_guard lock(group_.world->mutex);
    for (std::size_t p = 0; p < messages_.size(); ++p) {
      std::erase(group_.inbox[p], &messages_[p]);
      wanted_[p] = false;
    }
  }

 private:
  bool take(int source) {
    std::vector<Message*>& inbox = group_.inbox[rank_];
    const auto found = std::find_if(inbox.begin(), inbox.end(), [&](const Message* message) {
      return message->source == source && message->tag == tag_;
    });
    if (found == inbox.end()) return false;
    Message& message = **found;
    Incoming& in = in_[source];
    FARSKIP_CHECK(message.content.bytes <= in.capacity,
                  "{}: rank {} sent {} bytes to rank {}, which expects at most {}: the ranks call different "
                  "collectives, or with different lengths",
                  group_.name, source, message.content.bytes, rank_, in.capacity);
    in.bytes = message.content.bytes;
    if (in.bytes > 0) std::memcpy(in.data, message.content.data, static_cast<std::size_t>(in.bytes));
    message.taken = true;
    inbox.erase(found);
    return true;
  }

  Group& group_;
  const int rank_;
  int tag_ = 0;
  std::vector<Message> messages_;  // [size]
  std::vector<char> wanted_;       // [size]
  std::span<Incoming> in_;
};

class LocalEndpoint final : public Endpoint {
 public:
  LocalEndpoint(std::shared_ptr<Group> group, int rank) : group_(std::move(group)), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return static_cast<int>(group_->world_ranks.size()); }
  std::string name() const override { return group_->name; }
  std::unique_ptr<Exchange> make_exchange() override {
    return std::make_unique<LocalExchange>(*group_, rank_);
  }

  std::unique_ptr<Endpoint> split(const SplitPlan& plan) override {
    const std::lock_guard lock(group_->world->mutex);
    std::shared_ptr<Group>& part = group_->parts[{plan.number, plan.color}];
    if (!part) {  // the first to come makes it
      std::vector<int> world_ranks;
      for (const int member : plan.members) world_ranks.push_back(group_->world_ranks[member]);
      part = make_group(group_->world, plan.name + " (local)", std::move(world_ranks));
    }
    return std::make_unique<LocalEndpoint>(part, plan.position);
  }

  std::uint64_t changes() override {
    const std::lock_guard lock(group_->world->mutex);
    return group_->world->changes;
  }
  void wait_for_change(std::uint64_t seen, std::chrono::steady_clock::time_point) override {
    World& world = *group_->world;
    std::unique_lock lock(world.mutex);
    world.changed.wait(lock, [&] { return world.changes != seen; });
  }
  void fail(const std::string& reason) noexcept override {
    group_->world->fail(group_->world_ranks[rank_],
                        fmt::format("{}: rank {} failed: {}", group_->name, rank_, reason));
  }

 private:
  std::shared_ptr<Group> group_;
  int rank_;
};

void run_rank(const std::shared_ptr<Group>& group, int rank, const std::function<void(Communicator)>& body) {
  World& world = *group->world;
  try {
    body(Communicator(std::make_shared<HostCommunicator>(std::make_unique<LocalEndpoint>(group, rank),
                                                         std::make_shared<Progress>())));
  } catch (const std::exception& error) {
    world.errors[rank] = std::current_exception();
    world.fail(rank, fmt::format("{}: rank {} failed: {}", group->name, rank, error.what()));
  } catch (...) {
    world.errors[rank] = std::current_exception();
    world.fail(rank, fmt::format("{}: rank {} failed", group->name, rank));
  }
  const std::lock_guard lock(world.mutex);
  world.left[rank] = true;
  world.announce();
}

}  // namespace

void run_local_ranks(int size, const std::function<void(Communicator)>& body) {
  FARSKIP_CHECK(size >= 1, "{} ranks", size);
  auto world = std::make_shared<World>();
  world->left.resize(static_cast<std::size_t>(size));
  world->errors.resize(static_cast<std::size_t>(size));
  std::vector<int> ranks(static_cast<std::size_t>(size));
  std::iota(ranks.begin(), ranks.end(), 0);
  const std::shared_ptr<Group> group = make_group(world, "world (local)", ranks);
  {
    std::vector<std::jthread> threads;
    for (const int rank : ranks) threads.emplace_back([&, rank] { run_rank(group, rank, body); });
  }
  // The rank that failed first has the cause; what the others threw follows from it.
  if (world->failed_rank >= 0 && world->errors[world->failed_rank])
    std::rethrow_exception(world->errors[world->failed_rank]);
  if (!world->failure.empty()) throw InternalError(world->failure);
}

}  // namespace farskip
