// SPDX-License-Identifier: Apache-2.0
// The lexer. White space as in Jinja's own (src/jinja2/lexer.py, with trim_blocks and lstrip_blocks).
#include <algorithm>

#include "farskip/base/error.h"
#include "farskip/base/file.h"
#include "syntax.h"

namespace farskip::jinja {
namespace {

constexpr std::string_view kSpace = " \t\n\r\f\v";
constexpr std::string_view kSymbols[] = {"==", "!=", "<=", ">=", "//", "**", "+", "-", "*",
                                         "/",  "%",  "~",  "<",  ">",  "=",  "(", ")", "[",
                                         "]",  "{",  "}",  ",",  ".",  ":",  "|"};

bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

std::string_view without_end_space(std::string_view text) {
  return text.substr(0, text.find_last_not_of(kSpace) + 1);  // npos + 1 is 0
}

/// Less the spaces between the last line end and a tag, where there is nothing else.
std::string_view without_indent(std::string_view text, bool starts_line) {
  const std::size_t line = text.rfind('\n') + 1;
  if (line == 0 && !starts_line) return text;
  return text.find_first_not_of(kSpace, line) == std::string_view::npos ? text.substr(0, line) : text;
}

class Cutter {
 public:
  Cutter(std::string_view text, const std::string& where) : text_(text), place_{&where} {}

  std::vector<Piece> cut() {
    while (at_ < text_.size()) {
      const std::size_t tag = find_tag();
      add_text(tag);
      if (tag == std::string_view::npos) break;
      const char kind = text_[tag + 1];
      move_to(tag + 2);
      if (at_ < text_.size() && (text_[at_] == '-' || text_[at_] == '+')) ++at_;
      if (kind == '#')
        skip_comment();
      else
        add_tag(kind == '{' ? Piece::Kind::expression : Piece::Kind::statement);
    }
    return std::move(pieces_);
  }

 private:
  std::size_t find_tag() const {
    for (std::size_t i = text_.find('{', at_); i != std::string_view::npos; i = text_.find('{', i + 1))
      if (i + 1 < text_.size() && std::string_view("{%#").find(text_[i + 1]) != std::string_view::npos)
        return i;
    return std::string_view::npos;
  }
  void move_to(std::size_t position) {
    place_.line += static_cast<int>(std::count(text_.begin() + static_cast<std::ptrdiff_t>(at_),
                                               text_.begin() + static_cast<std::ptrdiff_t>(position), '\n'));
    at_ = position;
  }

  void add_text(std::size_t tag) {
    std::string_view text = text_.substr(at_, tag == std::string_view::npos ? tag : tag - at_);
    if (tag != std::string_view::npos) {
      const char sign = tag + 2 < text_.size() ? text_[tag + 2] : ' ';
      if (sign == '-')
        text = without_end_space(text);
      else if (sign != '+' && text_[tag + 1] != '{')
        text = without_indent(text, starts_line_);
    }
    if (!text.empty()) pieces_.push_back({Piece::Kind::text, std::string(text), {}});
  }

  /// At the end of a tag, after its delimiter. `sign`: what stood before that.
  void end_tag(char sign, bool trims) {
    const std::size_t begin = at_;
    if (sign == '-')
      move_to(std::min(text_.find_first_not_of(kSpace, at_), text_.size()));
    else if (sign != '+' && trims && at_ < text_.size() && text_[at_] == '\n')
      move_to(at_ + 1);
    starts_line_ = at_ > begin && text_[at_ - 1] == '\n';
  }

  void skip_comment() {
    const std::size_t end = text_.find("#}", at_);
    if (end == std::string_view::npos) place_.refuse("a comment has no end");
    const char sign = text_[end - 1];
    move_to(end + 2);
    end_tag(sign, true);
  }

  void add_tag(Piece::Kind kind) {
    const std::string_view delimiter = kind == Piece::Kind::expression ? "}}" : "%}";
    Piece piece{kind, {}, {}};
    for (int depth = 0;;) {
      move_to(std::min(text_.find_first_not_of(kSpace, at_), text_.size()));
      const std::string_view rest = text_.substr(at_);
      if (rest.empty()) place_.refuse(fmt::format("a tag has no {}", delimiter));
      const bool has_sign = rest[0] == '-' || (rest[0] == '+' && kind == Piece::Kind::statement);
      if (depth == 0 && rest.substr(has_sign ? 1 : 0).starts_with(delimiter)) {
        piece.tokens.push_back({Token::Kind::end, std::string(delimiter), place_.line});
        move_to(at_ + delimiter.size() + (has_sign ? 1 : 0));
        end_tag(has_sign ? rest[0] : ' ', kind == Piece::Kind::statement);
        break;
      }
      piece.tokens.push_back(next_token());
      const Token& token = piece.tokens.back();
      if (token.kind != Token::Kind::symbol) continue;
      if (std::string_view("([{").find(token.text) != std::string_view::npos) ++depth;
      if (std::string_view(")]}").find(token.text) != std::string_view::npos) --depth;
    }
    pieces_.push_back(std::move(piece));
  }

  Token next_token() {
    const char c = text_[at_];
    if (c == '\'' || c == '"') return string_token(c);
    Token token{Token::Kind::name, {}, place_.line};
    std::size_t end = at_;
    if (is_name_start(c)) {
      while (end < text_.size() && (is_name_start(text_[end]) || is_digit(text_[end]))) ++end;
    } else if (is_digit(c)) {
      token.kind = Token::Kind::integer;
      while (end < text_.size() && is_digit(text_[end])) ++end;
      if (end + 1 < text_.size() && text_[end] == '.' && is_digit(text_[end + 1])) {
        token.kind = Token::Kind::real;
        for (++end; end < text_.size() && is_digit(text_[end]);) ++end;
      }
    } else {
      token.kind = Token::Kind::symbol;
      for (const std::string_view symbol : kSymbols)
        if (end == at_ && text_.substr(at_).starts_with(symbol)) end += symbol.size();
      if (end == at_)
        place_.refuse(fmt::format("'{}' is not expected in a tag", printable(text_.substr(at_, 1))));
    }
    token.text = text_.substr(at_, end - at_);
    at_ = end;
    return token;
  }

  Token string_token(char quote) {
    Token token{Token::Kind::string, {}, place_.line};
    std::size_t i = at_ + 1;
    for (; i < text_.size() && text_[i] != quote; ++i) {
      if (text_[i] != '\\' || i + 1 >= text_.size()) {
        token.text += text_[i];
        continue;
      }
      constexpr std::string_view letters = "nrt\\'\"", meanings = "\n\r\t\\'\"";
      const std::size_t known = letters.find(text_[++i]);
      if (known == std::string_view::npos)
        place_.refuse(fmt::format("'\\{}' in a string is not supported", printable(text_.substr(i, 1))));
      token.text += meanings[known];
    }
    if (i >= text_.size()) place_.refuse("a string has no end");
    move_to(i + 1);
    return token;
  }

  std::string_view text_;
  Place place_;
  std::size_t at_ = 0;
  bool starts_line_ = true;
  std::vector<Piece> pieces_;
};

}  // namespace

void Place::refuse(const std::string& why) const {
  throw DataError(fmt::format("{}:{}: {}", *where, line, why));
}

std::vector<Piece> cut_into_pieces(std::string_view text, const std::string& where) {
  if (text.ends_with('\n')) text.remove_suffix(1);
  return Cutter(text, where).cut();
}

}  // namespace farskip::jinja
