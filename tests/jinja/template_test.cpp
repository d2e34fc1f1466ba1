// SPDX-License-Identifier: Apache-2.0
// Chat templates beside what transformers makes of them (tests/fixtures/chat_templates, written by
// scripts/reference/make_chat.py).
#include "jinja/template.h"

#include <nlohmann/json.hpp>

#include "farskip/base/error.h"
#include "farskip/base/file.h"
#include "support/catch.h"
#include "support/support.h"

namespace farskip {
namespace {

using jinja::Template;
using nlohmann::ordered_json;

std::string render(const std::string& text, const ordered_json& variables = ordered_json::object()) {
  return Template::parse(text, "t.jinja").render(variables);
}

TEST_CASE("conversations are written as transformers writes them, and refused where it refuses them") {
  const fs::path folder = test::fixtures() / "chat_templates";
  const ordered_json rows = ordered_json::parse(read_text_file(folder / "rendered.json"));
  REQUIRE(rows.size() >= 60);
  for (const ordered_json& row : rows) {
    const std::string name = row["template"];
    CAPTURE(name, row["messages"].dump());
    const Template made = Template::parse(read_text_file(folder / name), name);
    const ordered_json variables = {{"messages", row["messages"]},
                                    {"add_generation_prompt", row["add_generation_prompt"]},
                                    {"bos_token", "<s>"},
                                    {"eos_token", "</s>"}};
    if (row.contains("error"))
      CHECK_THROWS_WITH(made.render(variables), ContainsSubstring(row["error"].get<std::string>()));
    else
      CHECK(made.render(variables) == row["text"].get<std::string>());
  }
}

TEST_CASE("what is not supported is refused by its name and line") {
  const auto check = [](const std::string& text, const std::string& message) {
    CAPTURE(text);
    CHECK_THROWS_WITH(render("\n" + text, {{"x", {1, 2}}, {"m", {{"a", 1}}}}), ContainsSubstring(message));
    CHECK_THROWS_AS(render("\n" + text, {{"x", {1, 2}}, {"m", {{"a", 1}}}}), DataError);
  };
  check("{% macro a() %}{% endmacro %}", "t.jinja:2: the statement 'macro' is not supported");
  check("{% include 'a' %}", "the statement 'include'");
  check("{{ x | map(attribute='a') }}", "t.jinja:2: the argument 'attribute' of map is not supported");
  check("{{ x | sort }}", "the filter 'sort' of a list is not supported");
  check("{{ x }}", "printing a list is not supported");
  check("{{ y.z }}", "'.z' of what is not defined");
  check("{{ f(1) }}", "the function 'f' is not supported");
  check("{{ 'a'.format(1) }}", "the method 'format' is not supported");
  check("{{ 1 is callable }}", "the test 'callable' of a number");
  check("{% if x %}", "'endif' is missing");
  check("{% for a in x %}{% else %}{% endfor %}", "'else' of a loop");
  check("{% break %}", "'break' stands outside a loop");
  check("{% set m.a = 1 %}", "'m' is no namespace");
  check("{{ 'a", "a string has no end");
  check("{{ 1", "a tag has no }}");
  check("{# a", "a comment has no end");
  check("{{ 1 + 'a' }}", "a number + a string is not supported");
  check("{{ raise_exception('told so') }}", "the template says: told so");
  check("{{ 9223372036854775 * 9223372036854775 }}", "a number has too many digits");
  check("{{ 1 // 0 }}", "division by zero");
}

TEST_CASE("a template that would not end, or grow without bound, is refused") {
  const std::string deep = std::string(100, '(') + "1" + std::string(100, ')');
  CHECK_THROWS_WITH(render("{{ " + deep + " }}"), ContainsSubstring("nested too deeply"));
  std::string blocks;
  for (int i = 0; i < 100; ++i) blocks += "{% if 1 %}";
  CHECK_THROWS_WITH(render(blocks), ContainsSubstring("nested too deeply"));
  const std::string loop = "{% for a in range(100000) %}";
  CHECK_THROWS_WITH(render(loop + loop + "{% endfor %}{% endfor %}"), ContainsSubstring("too many steps"));
  CHECK_THROWS_WITH(
      render("{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}"),
      ContainsSubstring("a string becomes too long"));
}

}  // namespace
}  // namespace farskip
