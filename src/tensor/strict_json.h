// SPDX-License-Identifier: Apache-2.0
#pragma once
// JSON from files we did not write ourselves: the library's own parser keeps one of two equal keys
// without a word and has no limit on depth.

#include <cstddef>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace farskip {

/// Parses `text`, read from `where`, as one JSON value. Throws DataError (where, byte or key, reason) on
/// a syntax error, bad UTF-8, two equal keys in one object, or nesting deeper than `max_depth`.
nlohmann::json parse_strict_json(std::string_view text, std::string_view where, std::size_t max_depth = 32);

}  // namespace farskip
