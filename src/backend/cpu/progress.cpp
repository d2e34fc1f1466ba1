// SPDX-License-Identifier: Apache-2.0
#include "backend/cpu/progress.h"

#include <utility>

namespace farskip::cpu {

namespace detail {
constinit thread_local ProgressScope* progress_scope = nullptr;
}

namespace {
// Polling more often takes more time than it hides (docs/decisions/004-progress.md).
constexpr std::chrono::microseconds kInterval{1000};
}  // namespace

ProgressScope::ProgressScope(const Communicator& group)
    : group_(group),
      outer_(std::exchange(detail::progress_scope, this)),
      last_(std::chrono::steady_clock::now()) {}

ProgressScope::~ProgressScope() {
  detail::progress_scope = outer_;
}

void ProgressScope::poll() {
  const auto now = std::chrono::steady_clock::now();
  if (now - last_ < kInterval) return;
  group_.poll();
  last_ = std::chrono::steady_clock::now();
}

}  // namespace farskip::cpu
