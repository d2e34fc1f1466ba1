// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <initializer_list>
#include <limits>

#include "farskip/base/error.h"
#include "farskip/base/file.h"
#include "syntax.h"

namespace farskip::jinja {
namespace {

constexpr int kMostDepth = 64;

/// The tokens of one tag as expressions, by precedence: if-else, or, and, not, comparisons, ~, + -, * / // %,
/// unary, then members, calls and filters.
class ExpressionParser {
 public:
  ExpressionParser(const std::vector<Token>& tokens, const std::string& where)
      : tokens_(tokens), where_(where) {}

  ExpressionPointer expression() {
    const Depth depth(*this);
    ExpressionPointer value = disjunction();
    if (!take_name("if")) return value;
    auto choice = make(Expression::Kind::choice);
    choice->parts.push_back(disjunction());
    choice->parts.push_back(std::move(value));
    choice->parts.push_back(take_name("else") ? expression() : nullptr);
    return choice;
  }
  /// What a loop runs over: an if after it is the loop's.
  ExpressionPointer disjunction() {
    return left_binary({"or"}, [this] { return left_binary({"and"}, [this] { return negation(); }); });
  }

  bool take_name(std::string_view name) { return take(Token::Kind::name, name); }
  bool take_symbol(std::string_view symbol) { return take(Token::Kind::symbol, symbol); }
  void expect_symbol(std::string_view symbol) {
    if (!take_symbol(symbol)) place().refuse(fmt::format("'{}' is expected before '{}'", symbol, shown()));
  }
  std::string name() {
    if (peek().kind != Token::Kind::name)
      place().refuse(fmt::format("a name is expected before '{}'", shown()));
    return tokens_[at_++].text;
  }
  void expect_end() {
    if (peek().kind != Token::Kind::end) place().refuse(fmt::format("'{}' is not expected here", shown()));
  }
  bool is_symbol(std::string_view symbol) const {
    return peek().kind == Token::Kind::symbol && peek().text == symbol;
  }
  Place place() const { return {&where_, peek().line}; }

 private:
  /// Every level of nesting passes through expression() or unary().
  struct Depth {
    explicit Depth(ExpressionParser& its_parser) : parser(its_parser) {
      if (++parser.depth_ > kMostDepth) parser.place().refuse("expressions are nested too deeply");
    }
    ~Depth() { --parser.depth_; }
    Depth(const Depth&) = delete;
    Depth& operator=(const Depth&) = delete;
    ExpressionParser& parser;
  };
  const Token& peek(std::size_t ahead = 0) const {
    return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
  }
  std::string shown() const { return printable(peek().text, 40); }
  bool take(Token::Kind kind, std::string_view text) {
    if (peek().kind != kind || peek().text != text) return false;
    ++at_;
    return true;
  }
  std::unique_ptr<Expression> make(Expression::Kind kind, std::string name = {}) const {
    auto e = std::make_unique<Expression>(Expression{kind, place()});
    e->name = std::move(name);
    return e;
  }
  std::unique_ptr<Expression> binary(std::string name, ExpressionPointer left,
                                     ExpressionPointer right) const {
    auto e = make(Expression::Kind::binary, std::move(name));
    e->parts.push_back(std::move(left));
    e->parts.push_back(std::move(right));
    return e;
  }
  template <class F>
  ExpressionPointer left_binary(std::initializer_list<std::string_view> operators, const F& operand) {
    ExpressionPointer left = operand();
    for (int n = 0;; ++n) {
      const auto found = std::find_if(operators.begin(), operators.end(), [&](std::string_view o) {
        return take(Token::Kind::name, o) || take(Token::Kind::symbol, o);
      });
      if (found == operators.end()) return left;
      if (n == 1000) place().refuse("an expression is too long");
      left = binary(std::string(*found), std::move(left), operand());
    }
  }
  ExpressionPointer negation() {
    if (!take_name("not")) return comparison();
    const Depth depth(*this);
    auto e = make(Expression::Kind::unary, "not");
    e->parts.push_back(negation());
    return e;
  }
  ExpressionPointer comparison() {
    ExpressionPointer left = concatenation();
    for (const std::string_view o : {"==", "!=", "<=", ">=", "<", ">"})
      if (take_symbol(o)) return refuse_chain(binary(std::string(o), std::move(left), concatenation()));
    if (take_name("in")) return refuse_chain(binary("in", std::move(left), concatenation()));
    if (peek().kind == Token::Kind::name && peek().text == "not" && peek(1).text == "in") {
      at_ += 2;
      return refuse_chain(binary("not in", std::move(left), concatenation()));
    }
    return left;
  }
  ExpressionPointer refuse_chain(ExpressionPointer e) {
    for (const std::string_view o : {"==", "!=", "<=", ">=", "<", ">"})
      if (is_symbol(o)) place().refuse("a chain of comparisons is not supported");
    return e;
  }
  ExpressionPointer concatenation() {
    return left_binary({"~"}, [this] {
      return left_binary({"+", "-"}, [this] {
        return left_binary({"*", "//", "/", "%"}, [this] { return unary(); });
      });
    });
  }
  ExpressionPointer unary() {
    const Depth depth(*this);
    for (const char* sign : {"-", "+"})
      if (take_symbol(sign)) {
        auto e = make(Expression::Kind::unary, sign);
        e->parts.push_back(unary());
        return e;
      }
    return postfix(primary());
  }

  ExpressionPointer postfix(ExpressionPointer e) {
    for (int n = 0;; ++n) {
      if (n == 1000) place().refuse("an expression is too long");
      if (take_symbol(".")) {
        e = with(make(Expression::Kind::member, name()), std::move(e));
      } else if (take_symbol("[")) {
        e = subscript(std::move(e));
      } else if (take_symbol("(")) {
        auto call = with(make(Expression::Kind::call), std::move(e));
        arguments(*call);
        e = std::move(call);
      } else if (take_symbol("|")) {
        auto filter = with(make(Expression::Kind::filter, name()), std::move(e));
        if (take_symbol("(")) arguments(*filter);
        e = std::move(filter);
      } else if (take_name("is")) {
        e = test(std::move(e));
      } else {
        return e;
      }
    }
  }
  static std::unique_ptr<Expression> with(std::unique_ptr<Expression> e, ExpressionPointer first) {
    e->parts.insert(e->parts.begin(), std::move(first));
    return e;
  }
  ExpressionPointer test(ExpressionPointer value) {
    const bool negated = take_name("not");
    auto e = with(make(Expression::Kind::test, name()), std::move(value));
    if (take_symbol("(")) arguments(*e);
    if (!negated) return e;
    return with(make(Expression::Kind::unary, "not"), std::move(e));
  }
  ExpressionPointer subscript(ExpressionPointer value) {
    auto e = with(make(Expression::Kind::index), std::move(value));
    e->parts.push_back(is_symbol(":") ? nullptr : expression());
    while (take_symbol(":")) {
      e->kind = Expression::Kind::slice;
      e->parts.push_back(is_symbol(":") || is_symbol("]") ? nullptr : expression());
    }
    if (e->parts.size() > 4) place().refuse("a slice has three parts at most");
    expect_symbol("]");
    return e;
  }
  void arguments(Expression& call) {
    while (!take_symbol(")")) {
      if (peek().kind == Token::Kind::name && peek(1).kind == Token::Kind::symbol && peek(1).text == "=") {
        const std::string key = name();
        expect_symbol("=");
        call.named.emplace_back(key, expression());
      } else {
        call.parts.push_back(expression());
      }
      if (!is_symbol(")")) expect_symbol(",");
    }
  }

  ExpressionPointer primary() {
    const Token token = peek();
    auto literal = make(Expression::Kind::literal);
    if (token.kind == Token::Kind::string) {
      for (; peek().kind == Token::Kind::string; ++at_)  // neighbours are one string
        literal->value = literal->value.is_null() ? Value(peek().text)
                                                  : Value(literal->value.get<std::string>() + peek().text);
      return literal;
    }
    if (token.kind == Token::Kind::integer || token.kind == Token::Kind::real) {
      if (token.text.size() > 15) place().refuse("a number has too many digits");
      ++at_;
      literal->value = token.kind == Token::Kind::real ? Value(std::stod(token.text))
                                                       : Value(std::int64_t{std::stoll(token.text)});
      return literal;
    }
    if (token.kind == Token::Kind::name) return named_value();
    if (take_symbol("(")) return parenthesis();
    if (take_symbol("[")) return sequence("]");
    if (take_symbol("{")) return map();
    place().refuse(fmt::format("a value is expected before '{}'", shown()));
  }
  ExpressionPointer named_value() {
    auto literal = make(Expression::Kind::literal);
    const std::string word = name();
    if (word == "true" || word == "True")
      literal->value = true;
    else if (word == "false" || word == "False")
      literal->value = false;
    else if (word != "none" && word != "None")
      return make(Expression::Kind::name, word);
    return literal;
  }
  ExpressionPointer parenthesis() {
    ExpressionPointer first = expression();
    if (take_symbol(")")) return first;
    expect_symbol(",");  // a tuple, which is a list here
    return with(sequence(")"), std::move(first));
  }
  std::unique_ptr<Expression> sequence(std::string_view end) {
    auto list = make(Expression::Kind::list);
    while (!take_symbol(end)) {
      list->parts.push_back(expression());
      if (!is_symbol(end)) expect_symbol(",");
    }
    return list;
  }
  ExpressionPointer map() {
    auto e = make(Expression::Kind::map);
    while (!take_symbol("}")) {
      e->parts.push_back(expression());
      expect_symbol(":");
      e->parts.push_back(expression());
      if (!is_symbol("}")) expect_symbol(",");
    }
    return e;
  }

  const std::vector<Token>& tokens_;
  const std::string& where_;
  std::size_t at_ = 0;
  int depth_ = 0;
};

class StatementParser {
 public:
  StatementParser(const std::vector<Piece>& pieces, const std::string& where)
      : pieces_(pieces), where_(where) {}

  std::vector<Statement> all() {
    std::vector<Statement> statements = body({});
    return statements;
  }

 private:
  /// Up to one of the words, whose tag is not taken; without words, up to the end.
  std::vector<Statement> body(std::initializer_list<std::string_view> ends) {
    if (++depth_ > kMostDepth) place().refuse("statements are nested too deeply");
    std::vector<Statement> statements;
    for (; at_ < pieces_.size();) {
      const Piece& piece = pieces_[at_];
      if (piece.kind == Piece::Kind::statement &&
          std::find(ends.begin(), ends.end(), piece.tokens[0].text) != ends.end())
        break;
      ++at_;
      if (piece.kind == Piece::Kind::text) {
        statements.push_back({Statement::Kind::text, {&where_, 0}, piece.text});
      } else {
        ExpressionParser parser(piece.tokens, where_);
        if (piece.kind == Piece::Kind::expression)
          output(parser, statements);
        else
          statement(parser, statements);
      }
    }
    if (at_ == pieces_.size() && ends.size() > 0)
      place().refuse(fmt::format("'{}' is missing", *(ends.end() - 1)));
    --depth_;
    return statements;
  }
  Place place() const {
    for (std::size_t i = std::min(at_, pieces_.size()); i-- > 0;)
      if (!pieces_[i].tokens.empty()) return {&where_, pieces_[i].tokens[0].line};
    return {&where_, 1};
  }
  static Statement& add(std::vector<Statement>& to, Statement::Kind kind, const ExpressionParser& parser) {
    to.push_back({kind, parser.place()});
    return to.back();
  }

  static void output(ExpressionParser& parser, std::vector<Statement>& to) {
    Statement& s = add(to, Statement::Kind::output, parser);
    s.value = parser.expression();
    parser.expect_end();
  }

  void statement(ExpressionParser& parser, std::vector<Statement>& to) {
    const Place here = parser.place();
    const std::string word = parser.name();
    if (word == "if") return branches(parser, to);
    if (word == "for") return loop(parser, to);
    if (word == "set") return set(parser, to);
    if (word == "generation") return generation(parser, to);
    if (word == "break" || word == "continue") {
      if (loops_ == 0) here.refuse(fmt::format("'{}' stands outside a loop", word));
      add(to, word == "break" ? Statement::Kind::break_loop : Statement::Kind::continue_loop, parser);
      return parser.expect_end();
    }
    here.refuse(fmt::format("the statement '{}' is not supported", printable(word, 40)));
  }

  void branches(ExpressionParser& parser, std::vector<Statement>& to) {
    Statement s{Statement::Kind::branches, parser.place()};
    s.tests.push_back(parser.expression());
    parser.expect_end();
    for (bool more = true; more;) {
      const bool was_else = s.tests.back() == nullptr;
      s.bodies.push_back(was_else ? body({"endif"}) : body({"elif", "else", "endif"}));
      ExpressionParser next(pieces_[at_++].tokens, where_);
      const std::string word = next.name();
      more = word != "endif";
      if (more) s.tests.push_back(word == "elif" ? next.expression() : nullptr);
      next.expect_end();
    }
    to.push_back(std::move(s));
  }

  void loop(ExpressionParser& parser, std::vector<Statement>& to) {
    Statement s{Statement::Kind::loop, parser.place()};
    do s.names.push_back(parser.name());
    while (parser.take_symbol(","));
    if (!parser.take_name("in")) parser.place().refuse("'in' is expected in a loop");
    s.value = parser.disjunction();
    if (parser.take_name("if")) s.condition = parser.expression();
    parser.expect_end();
    ++loops_;
    s.bodies.push_back(body({"else", "endfor"}));
    --loops_;
    ExpressionParser end(pieces_[at_++].tokens, where_);
    if (end.name() == "else") s.place.refuse("'else' of a loop is not supported");
    end.expect_end();
    to.push_back(std::move(s));
  }

  static void set(ExpressionParser& parser, std::vector<Statement>& to) {
    Statement& s = add(to, Statement::Kind::set, parser);
    s.names.push_back(parser.name());
    if (parser.take_symbol(".")) {
      s.kind = Statement::Kind::set_member;
      s.text = parser.name();
    }
    parser.expect_symbol("=");
    s.value = parser.expression();
    parser.expect_end();
  }

  /// Marks what an assistant has said, for training: what is in it stays.
  void generation(ExpressionParser& parser, std::vector<Statement>& to) {
    parser.expect_end();
    for (Statement& inner : body({"endgeneration"})) to.push_back(std::move(inner));
    ++at_;
  }

  const std::vector<Piece>& pieces_;
  const std::string& where_;
  std::size_t at_ = 0;
  int depth_ = 0, loops_ = 0;
};

}  // namespace

std::shared_ptr<const Block> parse_pieces(const std::vector<Piece>& pieces, const std::string& where) {
  return std::make_shared<const Block>(Block{StatementParser(pieces, where).all()});
}

}  // namespace farskip::jinja
