// SPDX-License-Identifier: Apache-2.0
#include "data/json_fields.h"

#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "farskip/base/error.h"
#include "farskip/base/file.h"

namespace farskip {
namespace {

const nlohmann::json kNull;

}  // namespace

JsonFields::JsonFields(const nlohmann::json& value, std::string where)
    : value_(value), where_(std::move(where)) {
  if (!value_.is_object())
    throw DataError(fmt::format("{}: an object is expected, found {}", where_, value_.type_name()));
}

const nlohmann::json& JsonFields::get(const std::string& key) {
  asked_.insert(key);
  const auto entry = value_.find(key);
  return entry == value_.end() ? kNull : *entry;
}

const nlohmann::json& JsonFields::require(const std::string& key) {
  const nlohmann::json& value = get(key);
  if (value.is_null())
    throw DataError(value_.contains(key) ? fmt::format("{}: null, where a value is expected", at(key))
                                         : fmt::format("{}: \"{}\" is missing", where_, key));
  return value;
}

std::string JsonFields::require_string(const std::string& key) {
  const nlohmann::json& value = require(key);
  if (!value.is_string())
    throw DataError(fmt::format("{}: a string is expected, found {}", at(key), value.type_name()));
  return value.get<std::string>();
}

bool JsonFields::boolean_or(const std::string& key, bool fallback) {
  const nlohmann::json& value = get(key);
  if (value.is_null()) return fallback;
  if (!value.is_boolean())
    throw DataError(fmt::format("{}: true or false is expected, found {}", at(key), printable(value.dump())));
  return value.get<bool>();
}

void JsonFields::require_null(const std::string& key, std::string_view why) {
  if (const nlohmann::json& value = get(key); !value.is_null())
    throw DataError(
        fmt::format("{}: {} is not supported, only null: {}", at(key), printable(value.dump()), why));
}

void JsonFields::finish() const {
  for (const auto& [key, value] : value_.items())
    if (!asked_.contains(key))
      throw DataError(fmt::format("{}: \"{}\" is not known here; allowed: {}", where_, printable(key),
                                  fmt::join(asked_, ", ")));
}

}  // namespace farskip
