// SPDX-License-Identifier: Apache-2.0
#pragma once
// Ranks as threads of this process, for tests: no launcher, any number of ranks, sanitizers work.

#include <functional>

#include "farskip/comm/communicator.h"

namespace farskip {

/// Calls `body` in `size` threads at once, each with its own communicator of all of them, and returns when
/// all have returned. If a rank throws, the others' collectives throw CommunicationError instead of waiting
/// for it, and the first exception is rethrown here. Waiting threads sleep.
void run_local_ranks(int size, const std::function<void(Communicator)>& body);

}  // namespace farskip
