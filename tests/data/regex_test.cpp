// SPDX-License-Identifier: Apache-2.0
#include "data/regex.h"

#include <vector>

#include "farskip/base/error.h"
#include "support/catch.h"

using namespace farskip;

namespace {

std::vector<std::string> find_all(const std::string& pattern, const std::string& text) {
  const Regex regex(pattern, "here");
  const Regex::Matcher matcher(regex);
  std::vector<std::string> found;
  std::size_t from = 0;
  while (const auto match = matcher.find(text, from)) {
    if (match->begin == match->end) break;
    found.push_back(text.substr(match->begin, match->end - match->begin));
    from = match->end;
  }
  return found;
}

using Words = std::vector<std::string>;

}  // namespace

TEST_CASE("Character classes are Unicode's") {
  CHECK(find_all("\\p{L}+", "na\u00efve \u65e5\u672c 12") == Words{"na\u00efve", "\u65e5\u672c"});
  CHECK(find_all("\\p{N}", "1\u0663\u00bd") == Words{"1", "\u0663", "\u00bd"});
  CHECK(find_all("(?i:'s)", "'S '\u017f") == Words{"'S", "'\u017f"});
}

TEST_CASE("White space is Unicode's White_Space, inside sets and outside") {
  for (const char* space : {"\t", "\v",
                            "\x1c"
                            "",
                            " ", "\u0085", "\u00a0", "\u2028", "\u3000", "\u180e", "\u200b"}) {
    const std::string text = space;
    const bool expected = text != "\x1c" && text != "\u180e" && text != "\u200b";
    INFO(static_cast<int>(static_cast<unsigned char>(text[0])));
    CHECK(find_all("\\s", text).empty() != expected);
    CHECK(find_all("[\\s]", text).empty() != expected);
    CHECK(find_all("\\S", text).empty() == expected);
    CHECK(find_all("[^\\s]", text).empty() == expected);
  }
}

TEST_CASE("Patterns keep their meaning from the dialect of tokenizer files") {
  CHECK(translate_oniguruma("a[^b\\]]\\u0041\\v", "here") == "a[^b\\]]\\x{0041}\\x{b}");
  CHECK(find_all("^b$", "a\nb\nc") == Words{"b"});
  CHECK(find_all(escape_regex("a.b*(c)[d]"), "axb a.b*(c)[d]") == Words{"a.b*(c)[d]"});
}

TEST_CASE("Constructs that differ between the dialects are refused") {
  for (const char* pattern : {"[[:alpha:]]", "[a[b]]", "[a&&b]", "\\w", "\\b", "\\h", "[\\S]", "(?m:.)",
                              "(?<n>a)", "[]a]", "a\\", "\\u12", "\\K"}) {
    INFO(pattern);
    CHECK_THROWS_WITH(Regex(pattern, "here"),
                      ContainsSubstring("here") && ContainsSubstring("not supported"));
  }
  CHECK_THROWS_WITH(Regex("(a", "here"), ContainsSubstring("does not compile"));
}

TEST_CASE("A pattern that would run for ever gives up with an error") {
  const Regex regex("(a|aa)+$", "here");
  const Regex::Matcher matcher(regex);
  CHECK_THROWS_AS(matcher.find(std::string(60, 'a') + "!", 0), DataError);
  CHECK_THROWS_WITH(
      matcher.find(std::string(60, 'a') + "!", 0),
      ContainsSubstring("here: regular expression \"(a|aa)+$\" gave up at byte 0 of a text of 61") &&
          ContainsSubstring("possessive"));
}
