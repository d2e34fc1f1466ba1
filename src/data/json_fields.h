// SPDX-License-Identifier: Apache-2.0
#pragma once
// Reading objects of tokenizer files so that nothing in them is passed over.

#include <nlohmann/json_fwd.hpp>
#include <set>
#include <string>
#include <string_view>

namespace farskip {

/// One JSON object. Each key must be asked for; finish() refuses the others. All errors are DataError and
/// name `where`, the key and what is allowed.
class JsonFields {
 public:
  /// Throws unless `value` is an object.
  JsonFields(const nlohmann::json& value, std::string where);

  const std::string& where() const { return where_; }
  std::string at(std::string_view key) const { return where_ + "." + std::string(key); }
  /// Null where the key is absent.
  const nlohmann::json& get(const std::string& key);
  const nlohmann::json& require(const std::string& key);
  std::string require_string(const std::string& key);
  bool boolean_or(const std::string& key, bool fallback);
  /// Refuses any value but null (or absence), saying `why`.
  void require_null(const std::string& key, std::string_view why);
  void finish() const;

 private:
  const nlohmann::json& value_;
  std::string where_;
  std::set<std::string> asked_;
};

}  // namespace farskip
