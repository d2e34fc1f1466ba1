// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a transport between hosts (or threads) provides: messages between the ranks of one group. Everything
// collective is built on it once, in operation.cpp.

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace farskip {

constexpr std::int64_t kNoMessage = -1;
/// Tags go round: MPI promises 32,767. An operation uses two.
constexpr int kNumTags = 32'768;

struct Outgoing {
  const void* data = nullptr;
  std::int64_t bytes = kNoMessage;
  std::int64_t capacity = bytes;  // what the receiver has room for: the same number as its Incoming says
};
struct Incoming {
  void* data = nullptr;
  std::int64_t capacity = kNoMessage;
  std::int64_t bytes = 0;  // what came, once the exchange is finished
};

/// One message to and one from each peer, at most. Used again and again.
class Exchange {
 public:
  virtual ~Exchange() = default;
  /// `out` and `in` are [size] and stay valid until finished; the own rank's entries are not looked at.
  virtual void post(int tag, std::span<const Outgoing> out, std::span<Incoming> in) = 0;
  /// Without blocking; true when all has been sent and received.
  virtual bool test() = 0;
  /// Lets go of the buffers as far as possible, without blocking.
  virtual void abandon() noexcept = 0;
};

/// How a group comes apart; equal on all its members.
struct SplitPlan {
  int color = 0;
  std::vector<int> members;  // ranks in the group that is split, in the order of the new group
  int position = 0;          // of this rank in `members`
  int number = 0;            // of this split among the splits of the group
  std::string name;
};

class Endpoint {
 public:
  virtual ~Endpoint() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual std::string name() const = 0;
  virtual std::unique_ptr<Exchange> make_exchange() = 0;
  virtual std::unique_ptr<Endpoint> split(const SplitPlan& plan) = 0;

  /// A number that changes when an exchange of any group of this rank may have made progress …
  virtual std::uint64_t changes() = 0;
  /// … and sleep until it is not `seen`. A transport that cannot tell returns before long; `since`: when the
  /// wait began.
  virtual void wait_for_change(std::uint64_t seen, std::chrono::steady_clock::time_point since) = 0;
  /// This rank gives up: whoever waits for it should hear of it.
  virtual void fail(const std::string& reason) noexcept = 0;
};

}  // namespace farskip
