#pragma once
// Errors. A UserError is the caller's to mend (its message says where, what value, what is allowed and
// how to mend it) and carries the exit code of its kind; an InternalError is a broken invariant of ours.

#include <fmt/format.h>

#include <stdexcept>
#include <string>

namespace farskip {

/// Exit codes of every command (sysexits.h where a code exists there).
enum class ExitCode : int {
  ok = 0,
  usage = 64,      // command line or configuration
  bad_data = 65,   // a file exists but its content is wrong
  no_input = 66,   // a file or folder does not exist
  internal = 70,   // a bug in FarSkip
  io = 74,         // reading or writing failed
  resumable = 75,  // stopped early, can be resumed
};

class Error : public std::runtime_error {
 public:
  Error(ExitCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ExitCode code() const { return code_; }

 private:
  ExitCode code_;
};

class UserError : public Error {
 public:
  using Error::Error;
};
class UsageError : public UserError {
 public:
  explicit UsageError(const std::string& message) : UserError(ExitCode::usage, message) {}
};
class DataError : public UserError {
 public:
  explicit DataError(const std::string& message) : UserError(ExitCode::bad_data, message) {}
};
class MissingInputError : public UserError {
 public:
  explicit MissingInputError(const std::string& message) : UserError(ExitCode::no_input, message) {}
};
class IoError : public UserError {
 public:
  explicit IoError(const std::string& message) : UserError(ExitCode::io, message) {}
};
class InternalError : public Error {
 public:
  explicit InternalError(const std::string& message) : Error(ExitCode::internal, message) {}
};

/// In a catch block: throws on what is being handled, as an Error. What the system refuses (memory, threads,
/// files) is an IoError that says how to mend it; any other exception that is none of ours is an
/// InternalError.
[[noreturn]] void rethrow_as_error();

/// What a false FARSKIP_CHECK throws: an InternalError. Out of line, since there are many.
[[noreturn]] void throw_check_failure(const char* file, int line, const char* condition,
                                      const std::string& message);

/// Throws InternalError with the place and the message unless `condition` holds.
#define FARSKIP_CHECK(condition, ...)                                                           \
  do {                                                                                          \
    if (!(condition)) [[unlikely]]                                                              \
      ::farskip::throw_check_failure(__FILE__, __LINE__, #condition, fmt::format(__VA_ARGS__)); \
  } while (false)

}  // namespace farskip
