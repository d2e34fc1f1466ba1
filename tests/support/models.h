#pragma once
// The models among the fixtures, whatever families there are.

#include <algorithm>
#include <string>
#include <vector>

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

}  // namespace farskip::test
