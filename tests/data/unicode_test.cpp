// SPDX-License-Identifier: Apache-2.0
#include "data/unicode.h"

#include "farskip/base/random.h"
#include "support/catch.h"

using namespace farskip;

TEST_CASE("Ill-formed UTF-8 is found at its first byte") {
  CHECK_FALSE(find_invalid_utf8("plain, \xC3\xA9, \xE6\x97\xA5, \xF0\x9F\x98\x80"));
  CHECK_FALSE(find_invalid_utf8(""));
  CHECK(find_invalid_utf8("ab\x80") == 2U);            // continuation alone
  CHECK(find_invalid_utf8("ab\xC3") == 2U);            // cut off
  CHECK(find_invalid_utf8("a\xC0\x80") == 1U);         // overlong
  CHECK(find_invalid_utf8("\xE0\x9F\xBF") == 0U);      // overlong
  CHECK(find_invalid_utf8("\xED\xA0\x80") == 0U);      // surrogate
  CHECK(find_invalid_utf8("\xF4\x90\x80\x80") == 0U);  // above U+10FFFF
  CHECK(find_invalid_utf8("\xF0\x9F\x98\x41") == 0U);
}

TEST_CASE("Each maximal ill-formed part becomes one replacement character") {
  CHECK(replace_invalid_utf8("a\xF0\x9F\x98z") == "a\xEF\xBF\xBDz");
  CHECK(replace_invalid_utf8("\xED\xA0\x80") == "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");
  CHECK(replace_invalid_utf8("\xC3\xA9\xFF") == "\xC3\xA9\xEF\xBF\xBD");
}

TEST_CASE("Code points survive the way to UTF-8 and back") {
  for (const char32_t c : {0x0U, 0x7fU, 0x80U, 0x7ffU, 0x800U, 0xffffU, 0x10000U, 0x10ffffU}) {
    std::string text;
    append_code_point(text, c);
    std::size_t position = 0;
    CHECK(next_code_point(text, position) == c);
    CHECK(position == text.size());
    CHECK_FALSE(find_invalid_utf8(text));
  }
}

TEST_CASE("Normal form C composes, reorders, and keeps composition exclusions apart") {
  CHECK(normalize_nfc("e\u0301") == "\u00e9");
  CHECK(normalize_nfc("A\u030a \u212b") == "\u00c5 \u00c5");
  CHECK(normalize_nfc("a\u0301\u0323") == "\u1ea1\u0301");  // the dot below sorts first
  CHECK(normalize_nfc("\u1100\u1161\u11a8") == "\uac01");   // Hangul
  CHECK(normalize_nfc("\u0958") == "\u0915\u093c");         // excluded from composition
  CHECK(normalize_nfc("a\u0315\u0300\u05ae\u0062") == "\u00e0\u05ae\u0315\u0062");
  CHECK(normalize_nfc("a\u0310\u0301") == "a\u0310\u0301");  // a mark of the same class stands between
  CHECK(normalize_nfc("\ufb01") == "\ufb01");                // compatibility forms stay
}

TEST_CASE("Normal form C of every code point agrees with Python's unicodedata 14.0") {
  std::string all;
  for (char32_t c = 0; c < 0x110000; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    std::string one;
    append_code_point(one, c);
    all += normalize_nfc(one);
  }
  CHECK(stream_id(all) == 0x23fc43766d7c2eb9U);  // FNV-1a of the same concatenation made there
}
