#pragma once
// Signs of life of one rank, for the thread that watches it: a peer that is lost or stuck shows only as a
// wait that does not end.

#include <atomic>
#include <cstdint>

namespace farskip {

/// Thread-safe and cheap: call it around every wait for peers, at every step, and now and then in long work
/// without steps (loading, validation, saving). Each of these calls is a sign of life.
class Heartbeat {
 public:
  Heartbeat();

  void begin_step(std::int64_t step);
  /// The rank waits from here to leave(); `what` lives as long as the program, and names the wait in messages
  /// ("expert.all_to_all"). Of nested waits the outermost gives its name.
  void enter(const char* what);
  void leave();
  /// The peers have answered, and the wait for slow work of one of them goes on. Such a wait has two limits:
  /// the usual one for the next answer, and that of patience for the whole of it. leave() ends it too.
  void hear_from_peers();
  void beat();
  /// Calls nest.
  void begin_patience() { patience_.fetch_add(1, std::memory_order_relaxed); }
  void end_patience() { patience_.fetch_sub(1, std::memory_order_relaxed); }

  struct Sign {
    std::int64_t step = -1;          // -1: no step has begun
    const char* waits_in = nullptr;  // nullptr: it does not wait
    double age_seconds = 0;          // since the last sign of life, on the monotonic clock
    double silence_seconds = 0;      // since the peers last answered, in a wait where they do
    bool patient = false;            // see HeartbeatPatience
  };
  Sign last_sign() const;

 private:
  std::atomic<std::int64_t> step_{-1};
  std::atomic<const char*> waits_in_{nullptr};
  std::atomic<int> depth_{0};  // of nested waits
  std::atomic<std::int64_t> last_nanoseconds_;
  std::atomic<std::int64_t> heard_nanoseconds_{0};  // 0: no wait in which peers answer
  std::atomic<int> patience_{0};
};

/// Between steps: work of which one rank may have much and the others wait for it (reading and checking
/// files). While it lives, a rank may be without a sign of life kPatience times as long.
class HeartbeatPatience {
 public:
  static constexpr double kPatience = 10;
  explicit HeartbeatPatience(Heartbeat& heartbeat) : heartbeat_(heartbeat) { heartbeat_.begin_patience(); }
  ~HeartbeatPatience() {
    heartbeat_.beat();
    heartbeat_.end_patience();
  }
  HeartbeatPatience(const HeartbeatPatience&) = delete;
  HeartbeatPatience& operator=(const HeartbeatPatience&) = delete;

 private:
  Heartbeat& heartbeat_;
};

/// enter() and leave() around a scope; `heartbeat` may be absent.
class HeartbeatWait {
 public:
  HeartbeatWait(Heartbeat* heartbeat, const char* what) : heartbeat_(heartbeat) {
    if (heartbeat_ != nullptr) heartbeat_->enter(what);
  }
  ~HeartbeatWait() {
    if (heartbeat_ != nullptr) heartbeat_->leave();
  }
  HeartbeatWait(const HeartbeatWait&) = delete;
  HeartbeatWait& operator=(const HeartbeatWait&) = delete;

 private:
  Heartbeat* heartbeat_;
};

}  // namespace farskip
