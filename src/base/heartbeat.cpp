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
  waits_in_.store(what, std::memory_order_relaxed);
  beat();
}

void Heartbeat::leave() {
  waits_in_.store(nullptr, std::memory_order_relaxed);
  beat();
}

void Heartbeat::beat() {
  last_nanoseconds_.store(now_nanoseconds(), std::memory_order_relaxed);
}

Heartbeat::Sign Heartbeat::last_sign() const {
  Sign sign;
  sign.age_seconds = 1e-9 * static_cast<double>(now_nanoseconds() - last_nanoseconds_.load());
  sign.step = step_.load();
  sign.waits_in = waits_in_.load();
  sign.patient = patience_.load() > 0;
  return sign;
}

}  // namespace farskip
