// SPDX-License-Identifier: Apache-2.0
#include <cctype>

#include "data/regex.h"
#include "farskip/base/error.h"
#include "farskip/base/file.h"

namespace farskip {
namespace {

// PCRE2's own \s also takes U+180E, which Unicode no longer counts as white space.
constexpr std::string_view kWhiteSpace =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

class Translator {
 public:
  Translator(std::string_view pattern, std::string_view where) : pattern_(pattern), where_(where) {}

  std::string run() {
    while (at_ < pattern_.size()) {
      const char c = pattern_[at_];
      if (c == '\\') {
        translate_escape();
      } else if (in_set_) {
        translate_in_set(c);
      } else if (c == '[') {
        open_set();
      } else if (c == '(' && next(1) == '?') {
        translate_group();
      } else {
        copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  char next(std::size_t ahead) const { return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : '\0'; }
  void copy(std::size_t count) {
    out_ += pattern_.substr(at_, count);
    at_ += count;
  }
  [[noreturn]] void refuse(std::string_view what) const {
    throw DataError(fmt::format("{}: regular expression \"{}\": {} at byte {} is not supported", where_,
                                printable(pattern_), what, at_));
  }

  void open_set() {
    in_set_ = true;
    copy(next(1) == '^' ? 2 : 1);
    if (next(0) == ']') refuse("an unescaped ] as first member of a set");
  }

  void translate_in_set(char c) {
    if (c == '[') refuse("a set or POSIX bracket inside a set");
    if (c == '&' && next(1) == '&') refuse("an intersection of sets");
    if (c == ']') in_set_ = false;
    copy(1);
  }

  void translate_group() {
    const char kind = next(2);
    if (kind == ':' || kind == '=' || kind == '!' || kind == '>') return copy(3);
    if (kind == '<' && (next(3) == '=' || next(3) == '!')) return copy(4);
    std::size_t length = 2;
    while (next(length) == 'i' || next(length) == 'x' || next(length) == '-') ++length;
    if (length == 2 || (next(length) != ':' && next(length) != ')')) refuse("this kind of group");
    copy(length);
  }

  void translate_escape() {
    const char c = next(1);
    if (c == '\0') refuse("a backslash at the end");
    if (c == 's') return replace(in_set_ ? std::string(kWhiteSpace) : fmt::format("[{}]", kWhiteSpace), 2);
    if (c == 'S' && !in_set_) return replace(fmt::format("[^{}]", kWhiteSpace), 2);
    if (c == 'v') return replace(R"(\x{b})", 2);
    if (c == 'u') return translate_unicode_escape();
    constexpr std::string_view kSame = "rntfaedDpPxAzZ";
    if (std::isalnum(static_cast<unsigned char>(c)) && kSame.find(c) == std::string_view::npos)
      refuse(fmt::format("\\{}", c));
    copy(2);
  }

  void translate_unicode_escape() {
    for (std::size_t i = 2; i < 6; ++i)
      if (!std::isxdigit(static_cast<unsigned char>(next(i)))) refuse("\\u without four hexadecimal digits");
    replace(fmt::format("\\x{{{}}}", pattern_.substr(at_ + 2, 4)), 6);
  }

  void replace(const std::string& with, std::size_t count) {
    out_ += with;
    at_ += count;
  }

  std::string_view pattern_, where_;
  std::size_t at_ = 0;
  bool in_set_ = false;
  std::string out_;
};

}  // namespace

std::string translate_oniguruma(std::string_view pattern, std::string_view where) {
  return Translator(pattern, where).run();
}

std::string escape_regex(std::string_view text) {
  constexpr std::string_view kSpecial = R"(\^$.[]|()?*+{}-&#)";
  std::string out;
  for (const char c : text) {
    if (kSpecial.find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out;
}

}  // namespace farskip
