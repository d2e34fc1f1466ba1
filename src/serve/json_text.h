// SPDX-License-Identifier: Apache-2.0
#pragma once
// JSON as it leaves the server.

#include <nlohmann/json.hpp>
#include <string>

namespace farskip {

/// In one line; bytes that are not UTF-8 (of a path) become U+FFFD.
inline std::string json_text(const nlohmann::ordered_json& value) {
  return value.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace farskip
