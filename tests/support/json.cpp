// SPDX-License-Identifier: Apache-2.0
#include "support/json.h"

namespace farskip::test {

nlohmann::json parse_json(std::string_view text) {
  return nlohmann::json::parse(text);
}

}  // namespace farskip::test
