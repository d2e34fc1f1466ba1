// SPDX-License-Identifier: Apache-2.0
#pragma once
// The models among the fixtures, whatever families there are.

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "farskip/model/model_config.h"
#include "support/support.h"

namespace farskip::test {

/// Names of the fixture folders that hold a model, sorted.
inline std::vector<std::string> model_fixtures() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(fixtures()))
    if (std::filesystem::exists(entry.path() / "config.json"))
      names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

/// The first of each family.
inline std::vector<std::string> family_fixtures() {
  std::vector<std::string> names;
  std::set<std::string> families;
  for (const std::string& name : model_fixtures())
    if (families.insert(read_hub_config(fixtures() / name).family).second) names.push_back(name);
  return names;
}

}  // namespace farskip::test
