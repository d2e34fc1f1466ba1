// SPDX-License-Identifier: Apache-2.0
#include "cli/failure.h"

#include <unistd.h>

#include <cstdlib>
#include <exception>

namespace farskip {

Failure describe_current_exception() {
  try {
    rethrow_as_error();
  } catch (const InternalError& e) {
    return {std::string(e.what()) + "\nThis is a bug in FarSkip; please report it with the command line.",
            e.code()};
  } catch (const Error& e) {
    return {e.what(), e.code()};
  }
}

void end_with_message() noexcept {
  Failure failure{"the program ended itself", ExitCode::internal};
  if (std::current_exception()) failure = describe_current_exception();
  print_error(failure.message);
  std::_Exit(static_cast<int>(failure.code));
}

void print_error(const std::string& message) {
  const std::string line = "farskip: error: " + message + "\n";
  for (std::size_t written = 0; written < line.size();) {
    const ssize_t n = ::write(STDERR_FILENO, line.data() + written, line.size() - written);
    if (n <= 0) return;  // nobody reads it
    written += static_cast<std::size_t>(n);
  }
}

}  // namespace farskip
