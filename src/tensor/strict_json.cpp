// SPDX-License-Identifier: Apache-2.0
#include "tensor/strict_json.h"

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "farskip/base/error.h"
#include "farskip/base/file.h"

namespace farskip {
namespace {

/// "parse error at line 1, column 1: …", without the library's own name of it in brackets.
std::string reason_of(const nlohmann::json::exception& error) {
  const std::string what = error.what();
  const std::size_t end = what.find("] ");
  return printable(
      what.starts_with("[json.exception.") && end != std::string::npos ? what.substr(end + 2) : what, 300);
}

}  // namespace

nlohmann::json parse_strict_json(std::string_view text, std::string_view where, std::size_t max_depth) {
  using Event = nlohmann::json::parse_event_t;
  // The library takes a NUL for the end of the text and would ignore what follows.
  if (const std::size_t nul = text.find('\0'); nul != std::string_view::npos)
    throw DataError(fmt::format("{}: not valid JSON: NUL byte at byte {}", where, nul));
  std::vector<std::set<std::string>> open;  // keys seen so far in each open object; empty for arrays
  const auto check = [&](int, Event event, nlohmann::json& value) {
    if (event == Event::object_start || event == Event::array_start) {
      if (open.size() == max_depth)
        throw DataError(fmt::format("{}: JSON nested deeper than {} levels", where, max_depth));
      open.emplace_back();
    } else if (event == Event::object_end || event == Event::array_end) {
      open.pop_back();
    } else if (event == Event::key && !open.back().insert(value.get<std::string>()).second) {
      throw DataError(fmt::format("{}: key \"{}\" given twice", where, printable(value.get<std::string>())));
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text, check);
  } catch (const nlohmann::json::exception& error) {
    throw DataError(fmt::format("{}: not valid JSON: {}", where, reason_of(error)));
  }
}

}  // namespace farskip
