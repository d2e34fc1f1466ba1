#include "farskip/base/error.h"

#include <filesystem>
#include <new>
#include <system_error>

namespace farskip {

void rethrow_as_error() {
  try {
    throw;
  } catch (const Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw IoError(
        "out of memory; use more ranks (parallel.zero, parallel.expert), a smaller model, or a smaller "
        "train.micro_batch or sequence_length; where a limit is set (ulimit -v), raise it");
  } catch (const std::filesystem::filesystem_error& e) {
    throw IoError(fmt::format("{}: {}", e.path1().string(), e.code().message()));
  } catch (const std::system_error& e) {
    if (e.code() != std::errc::resource_unavailable_try_again) throw InternalError(e.what());
    throw IoError(
        fmt::format("cannot start a thread: {}; set OMP_NUM_THREADS to fewer, or raise the limit (ulimit -u)",
                    e.code().message()));
  } catch (const std::exception& e) {
    throw InternalError(e.what());
  } catch (...) {
    throw InternalError("unknown error");
  }
}

void throw_check_failure(const char* file, int line, const char* condition, const std::string& message) {
  throw InternalError(fmt::format("{}:{}: ({}) is false: {}", file, line, condition, message));
}

}  // namespace farskip
