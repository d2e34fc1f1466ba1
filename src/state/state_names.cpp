// SPDX-License-Identifier: Apache-2.0
#include "state/state_names.h"

#include <fmt/format.h>

namespace farskip {

std::string gradient_name(std::string_view parameter) {
  return fmt::format("grad.{}", parameter);
}
std::string state_name(std::string_view kind, std::string_view parameter) {
  return fmt::format("{}{}", kind, parameter);
}

}  // namespace farskip
