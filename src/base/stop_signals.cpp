#include "farskip/base/stop_signals.h"

#include <unistd.h>

#include <atomic>
#include <mutex>

namespace farskip {
namespace {

// A handler can reach nothing else.
std::atomic<int> stop_requested{0};
static_assert(std::atomic<int>::is_always_lock_free);  // so that a handler may write it
std::atomic<bool> leaving_allowed{false};

void on_stop(int signal) {
  if (signal == SIGTERM && stop_requested == SIGTERM) ::_exit(128 + SIGTERM);
  stop_requested = signal;
}

// Handlers are the process's, ranks may be its threads.
std::mutex listeners_mutex;
int num_listeners = 0;

void install(void (*handler)(int)) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGUSR1, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
}

}  // namespace

StopSignals::StopSignals() {
  const std::lock_guard lock(listeners_mutex);
  if (num_listeners++ > 0) return;
  stop_requested = 0;
  install(on_stop);
}

StopSignals::~StopSignals() {
  const std::lock_guard lock(listeners_mutex);
  if (--num_listeners > 0) return;
  leaving_allowed = false;
  install(SIG_DFL);
}

bool StopSignals::requested() const {
  return stop_requested != 0;
}

void StopSignals::allow_leaving(bool allowed) const {
  leaving_allowed = allowed;
}

DieOnTerminate::DieOnTerminate() {
  struct sigaction action {};
  action.sa_handler = SIG_DFL;
  ::sigaction(SIGTERM, &action, &before_);
}

DieOnTerminate::~DieOnTerminate() {
  ::sigaction(SIGTERM, &before_, nullptr);
}

StopRequested::StopRequested()
    : Error(ExitCode::resumable, "stopped on request before the first step; run the same command to go on") {}

void leave_if_asked() {
  if (leaving_allowed.load(std::memory_order_relaxed) && stop_requested.load(std::memory_order_relaxed) != 0)
    throw StopRequested();
}

}  // namespace farskip
