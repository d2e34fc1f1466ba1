#include "farskip/cli/failure.h"

#include <unistd.h>

#include <filesystem>
#include <new>

namespace farskip {

Failure describe_current_exception() {
  try {
    throw;
  } catch (const InternalError& e) {
    return {std::string(e.what()) + "\nThis is a bug in FarSkip; please report it with the command line.",
            e.code()};
  } catch (const Error& e) {
    return {e.what(), e.code()};
  } catch (const std::bad_alloc&) {
    return {
        "out of memory; use more ranks (parallel.zero, parallel.expert), a smaller model, or a smaller "
        "train.micro_batch or sequence_length",
        ExitCode::io};
  } catch (const std::filesystem::filesystem_error& e) {
    return {fmt::format("{}: {}", e.path1().string(), e.code().message()), ExitCode::io};
  } catch (const std::exception& e) {
    return {e.what(), ExitCode::internal};
  }
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
