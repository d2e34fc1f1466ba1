// SPDX-License-Identifier: Apache-2.0
#pragma once
// JSON as tests read it.

#include <nlohmann/json.hpp>
#include <string_view>

namespace farskip::test {

/// nlohmann::json::parse, which takes a second to compile wherever it is called.
nlohmann::json parse_json(std::string_view text);

}  // namespace farskip::test
