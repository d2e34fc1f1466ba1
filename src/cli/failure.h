// SPDX-License-Identifier: Apache-2.0
#pragma once
// Errors as the user sees them.

#include <string>

#include "farskip/base/error.h"

namespace farskip {

struct Failure {
  std::string message;
  ExitCode code = ExitCode::internal;
};
/// Of the exception that is being handled: call it in a catch block.
Failure describe_current_exception();

/// "farskip: error: MESSAGE" on stderr, in one piece: lines of other ranks and threads do not mix with it.
void print_error(const std::string& message);

/// For std::set_terminate. An exception that leaves a thread of a library cannot be caught (memory that runs
/// out in a parallel loop): it ends the process with the usual message and exit code.
[[noreturn]] void end_with_message() noexcept;

}  // namespace farskip
