// SPDX-License-Identifier: Apache-2.0
#pragma once
// Communication moves on only inside calls of its library: while collectives are in flight, the thread that
// may make these calls looks after them between tiles of work, about once a millisecond.

#include <chrono>

#include "farskip/comm/communicator.h"

namespace farskip::cpu {

/// While it lives, poll_progress() on this thread serves what `group`'s rank has in flight.
class ProgressScope {
 public:
  explicit ProgressScope(const Communicator& group);
  ~ProgressScope();
  ProgressScope(const ProgressScope&) = delete;
  ProgressScope& operator=(const ProgressScope&) = delete;

  void poll();

 private:
  const Communicator& group_;
  ProgressScope* outer_;
  std::chrono::steady_clock::time_point last_;
};

namespace detail {
// Of one thread, not of the process: a rank's own thread has it, its helpers and other ranks do not.
extern constinit thread_local ProgressScope* progress_scope;
}  // namespace detail

/// Called by kernels between pieces of work of well under a millisecond. Costs a load where nothing is in
/// flight, a look at the clock where something is.
inline void poll_progress() {
  if (detail::progress_scope != nullptr) [[unlikely]]
    detail::progress_scope->poll();
}

}  // namespace farskip::cpu
