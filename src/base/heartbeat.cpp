#include "farskip/base/heartbeat.h"

#include <chrono>

namespace farskip {
namespace {

std::int64_t now_nanoseconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

}  // namespace

Heartbeat::Heartbeat() : last_nanoseconds_(now_nanoseconds()) {}

void Heartbeat::begin_step(std::int64_t step) {
  step_.store(step, std::memory_order_relaxed);
  beat();
}

void Heartbeat::enter(const char* what) {
  if (depth_.fetch_add(1, std::memory_order_relaxed) > 0) return;
  waits_in_.store(what, std::memory_order_relaxed);
  beat();
}

void Heartbeat::leave() {
  if (depth_.fetch_sub(1, std::memory_order_relaxed) > 1) return;
  waits_in_.store(nullptr, std::memory_order_relaxed);
  heard_nanoseconds_.store(0, std::memory_order_relaxed);
  beat();
}

void Heartbeat::hear_from_peers() {
  heard_nanoseconds_.store(now_nanoseconds(), std::memory_order_relaxed);
}

void Heartbeat::beat() {
  const std::int64_t now = now_nanoseconds();
  last_nanoseconds_.store(now, std::memory_order_relaxed);
  if (heard_nanoseconds_.load(std::memory_order_relaxed) != 0)
    heard_nanoseconds_.store(now, std::memory_order_relaxed);
}

Heartbeat::Sign Heartbeat::last_sign() const {
  Sign sign;
  const auto since = [](std::int64_t then) { return 1e-9 * static_cast<double>(now_nanoseconds() - then); };
  sign.age_seconds = since(last_nanoseconds_.load());
  const std::int64_t heard = heard_nanoseconds_.load();
  sign.silence_seconds = heard == 0 ? 0 : since(heard);
  sign.step = step_.load();
  sign.waits_in = waits_in_.load();
  sign.patient = patience_.load() > 0;
  return sign;
}

}  // namespace farskip
