// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <map>
#include <set>

#include "data/unicode.h"
#include "farskip/base/error.h"
#include "jinja/template.h"
#include "syntax.h"

namespace farskip::jinja {
namespace {

constexpr std::int64_t kMostSteps = 5'000'000;

enum class Flow { next, break_loop, continue_loop };

std::int64_t integer(const Value& value, const Place& place) {
  if (!value.is_number_integer() && !value.is_boolean())
    place.refuse(fmt::format("an integer is expected, found {}", kind_of(value)));
  return value.is_boolean() ? (value.get<bool>() ? 1 : 0) : value.get<std::int64_t>();
}

/// As Python divides: towards minus infinity.
std::int64_t floor_divide(std::int64_t a, std::int64_t b) {
  const std::int64_t q = a / b;
  return a % b != 0 && (a < 0) != (b < 0) ? q - 1 : q;
}

Value calculate(const std::string& o, const Value& a, const Value& b, const Place& place) {
  if (a.is_number_float() || b.is_number_float()) place.refuse("arithmetic of fractions is not supported");
  const std::int64_t x = integer(a, place), y = integer(b, place);
  std::int64_t result = 0;
  if (o == "/") place.refuse("'/' is not supported; '//' divides integers");
  if (o == "//" || o == "%") {
    if (y == 0) place.refuse("division by zero");
    if (y == -1) return o == "%" ? Value(0) : calculate("-", 0, a, place);
    return o == "//" ? floor_divide(x, y) : x - floor_divide(x, y) * y;
  }
  const bool overflows = o == "+"   ? __builtin_add_overflow(x, y, &result)
                         : o == "-" ? __builtin_sub_overflow(x, y, &result)
                                    : __builtin_mul_overflow(x, y, &result);
  if (overflows) place.refuse("a number is too large");
  return result;
}

/// Python's order of strings and numbers; others have none.
bool is_less(const Value& a, const Value& b, const Place& place) {
  if (!(a.is_string() && b.is_string()) && !(a.is_number() && b.is_number()))
    place.refuse(fmt::format("{} and {} cannot be compared", kind_of(a), kind_of(b)));
  return a < b;
}

bool is_equal(const Value& a, const Value& b) {
  if (a.is_discarded() || b.is_discarded()) return a.is_discarded() && b.is_discarded();
  if (a.is_boolean() && b.is_number()) return Value(a.get<bool>() ? 1 : 0) == b;
  if (b.is_boolean() && a.is_number()) return is_equal(b, a);
  return a == b;
}

class Interpreter {
 public:
  Interpreter(const Value& variables, const std::string& where) : where_(where) {
    scopes_.emplace_back();
    for (const auto& [name, value] : variables.items()) scopes_[0][name] = value;
  }
  std::string take() { return std::move(out_); }

  Flow run(const std::vector<Statement>& statements) {
    for (const Statement& s : statements) {
      count({&where_, s.place.line});
      const Flow flow = run(s);
      if (flow != Flow::next) return flow;
    }
    return Flow::next;
  }

 private:
  Flow run(const Statement& s) {
    using Kind = Statement::Kind;
    switch (s.kind) {
      case Kind::text:
        write(s.text, s.place);
        return Flow::next;
      case Kind::output:
        write(text_of(evaluate(*s.value), s.place), s.place);
        return Flow::next;
      case Kind::branches:
        for (std::size_t i = 0; i < s.tests.size(); ++i)
          if (s.tests[i] == nullptr || is_true(evaluate(*s.tests[i]))) return run(s.bodies[i]);
        return Flow::next;
      case Kind::loop:
        loop(s);
        return Flow::next;
      case Kind::set:
        scopes_.back()[s.names[0]] = evaluate(*s.value);
        if (makes_namespace(*s.value)) namespaces_.insert(s.names[0]);
        return Flow::next;
      case Kind::set_member:
        set_member(s);
        return Flow::next;
      case Kind::break_loop:
        return Flow::break_loop;
      case Kind::continue_loop:
        return Flow::continue_loop;
    }
    return Flow::next;
  }

  void count(const Place& place) {
    if (++steps_ > kMostSteps) place.refuse("the template takes too many steps");
  }
  void write(const std::string& text, const Place& place) {
    if (out_.size() + text.size() > kMostBytes) place.refuse("the text becomes too long");
    out_ += text;
  }

  Value* find(const std::string& name) {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope)
      if (const auto it = scope->find(name); it != scope->end()) return &it->second;
    return nullptr;
  }

  static bool makes_namespace(const Expression& e) {
    return e.kind == Expression::Kind::call && e.parts[0]->kind == Expression::Kind::name &&
           e.parts[0]->name == "namespace";
  }
  /// Only a namespace can be changed, wherever it was made.
  void set_member(const Statement& s) {
    Value value = evaluate(*s.value);
    Value* const target = find(s.names[0]);
    if (target == nullptr || !target->is_object() || !namespaces_.contains(s.names[0]))
      s.place.refuse(fmt::format("'{}' is no namespace, so its members cannot be set", s.names[0]));
    (*target)[s.text] = std::move(value);
  }

  std::vector<Value> items_of(const Value& value, const Place& place) {
    std::vector<Value> items;
    if (value.is_discarded()) return items;
    if (value.is_object())
      for (const auto& [key, member] : value.items()) items.emplace_back(key);
    else if (value.is_array())
      items.assign(value.begin(), value.end());
    else
      place.refuse(fmt::format("a loop over {} is not supported", kind_of(value)));
    return items;
  }

  void name_items(const Statement& s, const Value& item) {
    if (s.names.size() == 1) {
      scopes_.back()[s.names[0]] = item;
      return;
    }
    if (!item.is_array() || item.size() != s.names.size())
      s.place.refuse(
          fmt::format("{} values are expected from each of what a loop runs over", s.names.size()));
    for (std::size_t i = 0; i < s.names.size(); ++i) scopes_.back()[s.names[i]] = item[i];
  }

  void loop(const Statement& s) {
    Value storage;
    std::vector<Value> items = items_of(look_at(*s.value, storage), s.place);
    steps_ += static_cast<std::int64_t>(items.size());
    scopes_.emplace_back();
    if (s.condition != nullptr)
      std::erase_if(items, [&](const Value& item) {
        count(s.place);
        name_items(s, item);
        return !is_true(evaluate(*s.condition));
      });
    const std::size_t n = items.size();
    for (std::size_t i = 0; i < n; ++i) {
      count(s.place);
      scopes_.back().clear();
      name_items(s, items[i]);
      scopes_.back()["loop"] = {
          {"index", i + 1},  {"index0", i},        {"revindex", n - i}, {"revindex0", n - i - 1},
          {"first", i == 0}, {"last", i + 1 == n}, {"length", n}};
      // What stands before the first and after the last is not defined.
      if (i > 0) scopes_.back()["loop"]["previtem"] = items[i - 1];
      if (i + 1 < n) scopes_.back()["loop"]["nextitem"] = items[i + 1];
      if (run(s.bodies[0]) == Flow::break_loop) break;
    }
    scopes_.pop_back();
  }

  /// A value where it stands, or put into `storage`: conversations are long, and are not copied to look at
  /// them.
  const Value& look_at(const Expression& e, Value& storage) {
    using Kind = Expression::Kind;
    if (e.kind == Kind::name)
      if (const Value* const found = find(e.name)) {
        count(e.place);
        return *found;
      }
    if (e.kind != Kind::member && e.kind != Kind::index) return storage = evaluate(e);
    count(e.place);
    const Value& owner = look_at(*e.parts[0], storage);
    const Value* const part = e.kind == Kind::member ? find_member(owner, e.name, e.place)
                                                     : find_item(owner, evaluate(*e.parts.at(1)), e.place);
    if (part == nullptr) return storage = undefined();
    if (&owner != &storage) return *part;
    return storage = Value(*part);
  }

  Value evaluate(const Expression& e) {
    count(e.place);
    using Kind = Expression::Kind;
    Value storage;
    switch (e.kind) {
      case Kind::literal:
        return e.value;
      case Kind::name: {
        const Value* const found = find(e.name);
        return found != nullptr ? *found : undefined();
      }
      case Kind::member:
      case Kind::index:
        return look_at(e, storage);
      case Kind::list: {
        Value list = Value::array();
        for (const auto& part : e.parts) list.push_back(defined(*part));
        return list;
      }
      case Kind::map:
        return map(e);
      case Kind::slice:
        return slice(e);
      case Kind::call:
        return call(e);
      case Kind::filter:
        return apply_filter(e.name, look_at(*e.parts[0], storage), arguments(e), e.place);
      case Kind::test:
        if (asks_for_function(e)) return apply_test(e.name, true, arguments(e), e.place);
        return apply_test(e.name, look_at(*e.parts[0], storage), arguments(e), e.place);
      case Kind::unary:
        return unary(e);
      case Kind::binary:
        return binary(e);
      case Kind::choice:
        if (is_true(evaluate(*e.parts[0]))) return evaluate(*e.parts[1]);
        return e.parts[2] != nullptr ? evaluate(*e.parts[2]) : undefined();
    }
    return undefined();
  }

  /// "strftime_now is defined": a function is no variable.
  bool asks_for_function(const Expression& test) {
    const Expression& subject = *test.parts[0];
    return (test.name == "defined" || test.name == "undefined") && subject.kind == Expression::Kind::name &&
           is_function(subject.name) && find(subject.name) == nullptr;
  }
  Value defined(const Expression& e) {
    Value value = evaluate(e);
    if (value.is_discarded()) e.place.refuse("a value is not defined");
    return value;
  }
  Arguments arguments(const Expression& e) {
    Arguments all;
    for (std::size_t i = 1; i < e.parts.size(); ++i) all.values.push_back(evaluate(*e.parts[i]));
    for (const auto& [name, value] : e.named) all.named.emplace_back(name, evaluate(*value));
    return all;
  }
  Value map(const Expression& e) {
    Value object = Value::object();
    for (std::size_t i = 0; i + 1 < e.parts.size(); i += 2) {
      const Value key = evaluate(*e.parts[i]);
      if (!key.is_string()) e.place.refuse("a key of a map is no string");
      object[key.get<std::string>()] = defined(*e.parts[i + 1]);
    }
    return object;
  }

  static const Value* find_member(const Value& value, const std::string& name, const Place& place) {
    if (value.is_discarded()) place.refuse(fmt::format("'.{}' of what is not defined", name));
    if (!value.is_object()) return nullptr;
    const auto it = value.find(name);
    return it != value.end() ? &*it : nullptr;
  }
  static const Value* find_item(const Value& value, const Value& key, const Place& place) {
    if (key.is_string()) return find_member(value, key.get<std::string>(), place);
    const std::int64_t i = integer(key, place);
    if (value.is_string()) place.refuse("a character of a string by its index is not supported");
    if (!value.is_array()) place.refuse(fmt::format("'[{}]' of {}", i, kind_of(value)));
    const auto n = static_cast<std::int64_t>(value.size());
    const std::int64_t at = i < 0 ? i + n : i;
    return at >= 0 && at < n ? &value[static_cast<std::size_t>(at)] : nullptr;
  }
  Value slice(const Expression& e) {
    Value storage;
    const Value& value = look_at(*e.parts[0], storage);
    if (!value.is_array()) e.place.refuse(fmt::format("a slice of {} is not supported", kind_of(value)));
    const auto n = static_cast<std::int64_t>(value.size());
    const auto part = [&](std::size_t i, std::int64_t fallback) {
      return i < e.parts.size() && e.parts[i] != nullptr ? integer(evaluate(*e.parts[i]), e.place) : fallback;
    };
    steps_ += n;
    const std::int64_t step = part(3, 1);
    if (step != 1 && step != -1) e.place.refuse("steps of a slice other than 1 and -1 are not supported");
    const std::int64_t least = step > 0 ? 0 : -1, most = step > 0 ? n : n - 1;
    const auto bound = [&](std::size_t i, std::int64_t fallback) {
      if (i >= e.parts.size() || e.parts[i] == nullptr) return fallback;
      const std::int64_t given = part(i, 0);
      return std::clamp(given < 0 ? std::max(given, -n - 1) + n : given, least, most);
    };
    const std::int64_t begin = bound(1, step > 0 ? 0 : n - 1), end = bound(2, step > 0 ? n : -1);
    Value list = Value::array();
    for (std::int64_t i = begin; step > 0 ? i < end : i > end; i += step)
      list.push_back(value[static_cast<std::size_t>(i)]);
    return list;
  }

  Value call(const Expression& e) {
    const Expression& callee = *e.parts[0];
    if (callee.kind == Expression::Kind::name) return call_function(callee.name, arguments(e), e.place);
    if (callee.kind != Expression::Kind::member) e.place.refuse("only functions and methods can be called");
    Value storage;
    return call_method(callee.name, look_at(*callee.parts[0], storage), arguments(e), e.place);
  }

  Value unary(const Expression& e) {
    const Value value = evaluate(*e.parts[0]);
    if (e.name == "not") return !is_true(value);
    return calculate(e.name, 0, value, e.place);
  }
  Value binary(const Expression& e) {
    Value left, right;
    const Value& a = look_at(*e.parts[0], left);
    if (e.name == "and") return is_true(a) ? evaluate(*e.parts[1]) : a;
    if (e.name == "or") return is_true(a) ? a : evaluate(*e.parts[1]);
    const Value& b = look_at(*e.parts[1], right);
    if (e.name == "==") return is_equal(a, b);
    if (e.name == "!=") return !is_equal(a, b);
    if (e.name == "in") return is_in(a, b, e.place);
    if (e.name == "not in") return !is_in(a, b, e.place);
    if (e.name == "<") return is_less(a, b, e.place);
    if (e.name == ">") return is_less(b, a, e.place);
    if (e.name == "<=") return !is_less(b, a, e.place);
    if (e.name == ">=") return !is_less(a, b, e.place);
    if (e.name == "~") return joined(text_of(a, e.place), text_of(b, e.place), e.place);
    if (e.name == "+" && a.is_string() && b.is_string())
      return joined(a.get<std::string>(), b.get_ref<const std::string&>(), e.place);
    if (e.name == "+" && a.is_array() && b.is_array()) {
      if (a.size() + b.size() > static_cast<std::size_t>(kMostSteps))
        e.place.refuse("a list becomes too long");
      Value list = a;
      for (const Value& item : b) list.push_back(item);
      steps_ += static_cast<std::int64_t>(list.size());
      return list;
    }
    if (!a.is_number() || !b.is_number())
      e.place.refuse(fmt::format("{} {} {} is not supported", kind_of(a), e.name, kind_of(b)));
    return calculate(e.name, a, b, e.place);
  }
  Value joined(std::string a, const std::string& b, const Place& place) {
    if (a.size() + b.size() > kMostBytes) place.refuse("a string becomes too long");
    steps_ += static_cast<std::int64_t>((a.size() + b.size()) / 1024);
    return a += b;
  }

  const std::string& where_;
  std::string out_;
  std::int64_t steps_ = 0;
  std::vector<std::map<std::string, Value>> scopes_;
  std::set<std::string> namespaces_;  // names that one was given to
};

}  // namespace

Template Template::parse(std::string_view text, const std::string& where) {
  if (const auto bad = find_invalid_utf8(text))
    throw DataError(fmt::format("{}: not UTF-8 text at offset {}", where, *bad));
  Template made;
  made.where_ = std::make_shared<const std::string>(where);
  made.body_ = parse_pieces(cut_into_pieces(text, *made.where_), *made.where_);
  return made;
}

std::string Template::render(const nlohmann::ordered_json& variables) const {
  Interpreter interpreter(variables, *where_);
  interpreter.run(body_->statements);
  return interpreter.take();
}

}  // namespace farskip::jinja
