// SPDX-License-Identifier: Apache-2.0
#pragma once
// JSON whose first line holds the hash of all that follows it, so that any changed byte is found.

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace farskip {

/// `object` must not be empty.
std::string print_sealed(const nlohmann::json& object);
/// Throws DataError, naming `where`, for any text that print_sealed has not made.
nlohmann::json parse_sealed(std::string_view text, std::string_view where);

}  // namespace farskip
