// SPDX-License-Identifier: Apache-2.0
// docs/configuration.md is held to the schema: the same keys, ranges and defaults, no more and no fewer.
#include <map>
#include <sstream>

#include "farskip/base/file.h"
#include "farskip/config/run_config.h"
#include "support/catch.h"

using namespace farskip;

namespace {

/// The schema's part of each row of the page's tables: key → "| `key` | allowed | default |".
std::map<std::string, std::string> documented_rows() {
  std::map<std::string, std::string> rows;
  std::istringstream page(
      read_text_file(std::filesystem::path(FARSKIP_SOURCE_DIR) / "docs" / "configuration.md"));
  for (std::string line; std::getline(page, line);) {
    if (line.rfind("| `", 0) != 0) continue;
    std::size_t end = 0;
    for (int column = 0; column < 3 && end != std::string::npos; ++column) end = line.find('|', end + 1);
    REQUIRE(end != std::string::npos);
    const std::string key = line.substr(3, line.find('`', 3) - 3);
    INFO(key);
    CHECK(rows.emplace(key, line.substr(0, end + 1)).second);  // each key once
    CHECK(line.size() > end + 6);                              // and a meaning
  }
  return rows;
}

}  // namespace

TEST_CASE("the reference page names every key with its range and default, and no other") {
  ErrorList errors;
  read_run_config(parse_yaml_text("model: {}", "f"), errors);
  std::map<std::string, std::string> rows = documented_rows();
  for (const KnownKey& known : errors.known_keys()) {
    if (known.allowed == "map") continue;  // sections are headings there
    INFO("expected: | `" << known.path << "` | " << known.allowed << " | " << known.fallback << " |");
    CHECK(rows[known.path] == fmt::format("| `{}` | {} | {} |", known.path, known.allowed, known.fallback));
    rows.erase(known.path);
  }
  for (const auto& [key, row] : rows) FAIL("the page names " << key << ", which no reader knows");
}

TEST_CASE("the page's example is a configuration") {
  const std::string page =
      read_text_file(std::filesystem::path(FARSKIP_SOURCE_DIR) / "docs" / "configuration.md");
  const auto start = page.find("```yaml\n") + 8;
  const ConfigNode tree = parse_yaml_text(page.substr(start, page.find("```", start) - start), "docs");
  ErrorList errors;
  read_run_config(tree, errors, {.needs = {.model = true, .data = true}});
  CHECK(errors.report().empty());
}
