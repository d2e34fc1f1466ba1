#include "farskip/base/error.h"

namespace farskip {

void throw_check_failure(const char* file, int line, const char* condition, const std::string& message) {
  throw InternalError(fmt::format("{}:{}: ({}) is false: {}", file, line, condition, message));
}

}  // namespace farskip
