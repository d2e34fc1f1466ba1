// SPDX-License-Identifier: Apache-2.0
#pragma once
// A config.json of a fixture is changed and read again.

#include <nlohmann/json.hpp>

#include "farskip/base/file.h"
#include "farskip/model/model_config.h"
#include "model/family.h"
#include "support/support.h"

namespace farskip::test {

using Json = nlohmann::ordered_json;

/// The config.json of a fixture, to be changed.
inline Json fixture_config(const std::string& name) {
  return Json::parse(read_text_file(fixtures() / name / "config.json"));
}

inline ModelConfig read(const Json& config, std::vector<std::string>* notices = nullptr) {
  const TemporaryFolder folder;
  write_text_file(folder / "config.json", config.dump(2));
  return read_hub_config(folder.path(), notices);
}

/// The fixture with some keys set; a value in JSON's own notation.
inline Json with(Json config, const std::vector<std::pair<std::string, std::string>>& changes) {
  for (const auto& [key, value] : changes) config[key] = Json::parse(value);
  return config;
}

inline std::string refusal(const Json& config) {
  try {
    read(config);
  } catch (const DataError& error) {
    return error.what();
  }
  return "(read)";
}

}  // namespace farskip::test
