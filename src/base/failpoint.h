// SPDX-License-Identifier: Apache-2.0
#pragma once
// Failpoints: named places where a test can make the shipped program fail. Always compiled in, inert
// unless the environment says FARSKIP_FAULT="name[:rank][:kill|stop|error|exit]".

#include <string_view>

namespace farskip {

/// Does nothing unless FARSKIP_FAULT names this point and, where it gives a rank, this rank. Then:
/// kill (the default) ends the process with SIGKILL; stop suspends it with SIGSTOP; error throws IoError;
/// exit leaves at once with code 75.
void failpoint(std::string_view name, int rank = 0);

/// Throws UsageError when FARSKIP_FAULT cannot be read or names no failpoint. Called at the start, since a
/// misspelt failpoint would never be reached.
void check_failpoint();

}  // namespace farskip
