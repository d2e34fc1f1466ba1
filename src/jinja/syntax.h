// SPDX-License-Identifier: Apache-2.0
#pragma once
// A template as pieces, tokens and trees.

#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace farskip::jinja {

/// JSON, and what is not defined: a discarded value.
using Value = nlohmann::ordered_json;  // maps keep their order
inline Value undefined() {
  return Value(Value::value_t::discarded);
}

/// "WHERE:LINE: …" as a DataError.
struct Place {
  const std::string* where;
  int line = 1;
  [[noreturn]] void refuse(const std::string& why) const;
};

struct Token {
  enum class Kind { name, string, integer, real, symbol, end } kind = Kind::end;
  std::string text;
  int line = 1;
};
/// Text, {{ expression }} or {% statement %}, with white space as trim_blocks and lstrip_blocks leave it.
struct Piece {
  enum class Kind { text, expression, statement } kind = Kind::text;
  std::string text;           // of text
  std::vector<Token> tokens;  // of the others, the last of kind end
};
std::vector<Piece> cut_into_pieces(std::string_view text, const std::string& where);

struct Expression;
using ExpressionPointer = std::unique_ptr<const Expression>;
struct Expression {
  enum class Kind {
    literal,
    name,
    list,
    map,
    member,
    index,
    slice,
    call,
    filter,
    test,
    unary,
    binary,
    choice
  };
  Kind kind = Kind::literal;
  Place place;
  std::string name{};  // of a name, member, filter, test, operator
  Value value{};       // of a literal
  /// Operands, in order; none (a null pointer) where a slice has no bound and a choice no else. Of a call:
  /// what is called, then arguments; of filter and test: what is before it, then arguments; of a map: key,
  /// value, ….
  std::vector<ExpressionPointer> parts{};
  std::vector<std::pair<std::string, ExpressionPointer>> named{};  // arguments
};

struct Statement {
  enum class Kind { text, output, branches, loop, set, set_member, break_loop, continue_loop };
  Kind kind = Kind::text;
  Place place;
  std::string text{};                      // text; of set_member: the member
  std::vector<std::string> names{};        // that are set, or that a loop runs with
  ExpressionPointer value{};               // of output, set, loop
  ExpressionPointer condition{};           // of a loop; none: all
  std::vector<ExpressionPointer> tests{};  // of branches; none: else
  std::vector<std::vector<Statement>> bodies{};
};
struct Block {
  std::vector<Statement> statements;
};

std::shared_ptr<const Block> parse_pieces(const std::vector<Piece>& pieces, const std::string& where);

/// Filters, tests, methods and functions by name. `place` refuses what is not known, and wrong arguments.
struct Arguments {
  std::vector<Value> values{};
  std::vector<std::pair<std::string, Value>> named{};
};
Value apply_filter(const std::string& name, const Value& value, const Arguments& arguments,
                   const Place& place);
bool apply_test(const std::string& name, const Value& value, const Arguments& arguments, const Place& place);
Value call_method(const std::string& name, const Value& value, const Arguments& arguments,
                  const Place& place);
Value call_function(const std::string& name, const Arguments& arguments, const Place& place);
bool is_function(const std::string& name);

bool is_true(const Value& value);
/// As {{ }} prints it. Refuses lists and maps.
std::string text_of(const Value& value, const Place& place);
bool is_in(const Value& value, const Value& container, const Place& place);
/// "a string", "nothing that is defined", …, for messages.
std::string kind_of(const Value& value);

constexpr std::size_t kMostBytes = 16 << 20;  // of any text

}  // namespace farskip::jinja
