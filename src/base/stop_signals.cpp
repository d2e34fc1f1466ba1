// SPDX-License-Identifier: Apache-2.0
#include "base/stop_signals.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <mutex>
#include <string_view>

namespace farskip {
namespace {

// A handler can reach nothing else.
std::atomic<int> stop_requested{0};
static_assert(std::atomic<int>::is_always_lock_free);  // so that a handler may write it
std::atomic<bool> leaving_allowed{false};

void on_stop(int signal) {
  // The same again, that is impatience. One of each is not: a launcher sends SIGTERM after a Ctrl-C.
  if (signal != SIGUSR1 && stop_requested == signal) ::_exit(128 + signal);
  stop_requested = signal;
  if (signal != SIGINT) return;
  // Somebody looks on, and a step may be long.
  constexpr std::string_view notice = "\ninfo stopping; Ctrl-C again leaves at once, without saving\n";
  const int error = errno;
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, notice.data(), notice.size());
  errno = error;
}

// Handlers are the process's, ranks may be its threads.
std::mutex listeners_mutex;
int num_listeners = 0;

void install(void (*handler)(int)) {
  struct sigaction action {
  }, before{};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  ::sigaction(SIGUSR1, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  // A shell script starts what it puts into the background deaf to Ctrl-C.
  ::sigaction(SIGINT, nullptr, &before);
  if (before.sa_handler != SIG_IGN) ::sigaction(SIGINT, &action, nullptr);
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
