// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <ctime>
#include <set>

#include "data/unicode.h"
#include "farskip/base/error.h"
#include "farskip/base/file.h"
#include "syntax.h"

namespace farskip::jinja {
namespace {

/// A space as str.strip() of Python takes it away.
bool is_space(char32_t c) {
  return is_white_space(c) || (c >= 0x1c && c <= 0x1f);
}
bool is_one_of(char32_t c, const std::string& set) {
  for (std::size_t at = 0; at < set.size();)
    if (next_code_point(set, at) == c) return true;
  return false;
}

/// Without the characters at its ends; `characters`: none are named, so white space.
std::string strip(std::string_view text, const std::string* characters, bool left, bool right) {
  const auto goes = [&](char32_t c) {
    return characters != nullptr ? is_one_of(c, *characters) : is_space(c);
  };
  std::size_t begin = text.size(), end = 0;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t start = at;
    if (goes(next_code_point(text, at))) continue;
    begin = std::min(begin, start);
    end = at;
  }
  if (!left) begin = 0;
  if (!right) end = text.size();
  return begin < end ? std::string(text.substr(begin, end - begin)) : std::string();
}

std::string replaced(const std::string& text, const std::string& from, const std::string& to,
                     const Place& place) {
  if (from.empty()) place.refuse("replace of an empty string is not supported");
  std::string result;
  for (std::size_t at = 0;;) {
    const std::size_t found = text.find(from, at);
    result.append(text, at, found == std::string::npos ? found : found - at);
    if (result.size() > kMostBytes) place.refuse("a string becomes too long");
    if (found == std::string::npos) return result;
    result += to;
    at = found + from.size();
  }
}

Value split(const std::string& text, const std::string& separator, const Place& place) {
  if (separator.empty()) place.refuse("split needs a separator");
  Value parts = Value::array();
  for (std::size_t at = 0;;) {
    const std::size_t found = text.find(separator, at);
    parts.push_back(text.substr(at, found == std::string::npos ? found : found - at));
    if (found == std::string::npos) return parts;
    at = found + separator.size();
  }
}

/// Letters of ASCII; others would need tables.
std::string in_case(std::string text, bool upper, const Place& place) {
  for (char& c : text) {
    if ((c & 0x80) != 0) place.refuse("upper and lower of letters other than ASCII are not supported");
    if (upper ? (c >= 'a' && c <= 'z') : (c >= 'A' && c <= 'Z')) c = static_cast<char>(c ^ 0x20);
  }
  return text;
}

const std::string& string_of(const Value& value, const std::string& what, const Place& place) {
  if (!value.is_string()) place.refuse(fmt::format("{} of {} is not supported", what, kind_of(value)));
  return value.get_ref<const std::string&>();
}

/// `least` to `most` arguments by position, and no others.
void expect(const Arguments& a, const std::string& name, std::size_t least, std::size_t most,
            const Place& place) {
  if (!a.named.empty())
    place.refuse(fmt::format("the argument '{}' of {} is not supported", a.named[0].first, name));
  if (a.values.size() < least || a.values.size() > most)
    place.refuse(fmt::format("{} has {} arguments; allowed: {} to {}", name, a.values.size(), least, most));
}

std::int64_t length_of(const Value& value, const Place& place) {
  if (value.is_array() || value.is_object()) return static_cast<std::int64_t>(value.size());
  const std::string& text = string_of(value, "length", place);
  return std::count_if(text.begin(), text.end(), [](char byte) { return (byte & 0xc0) != 0x80; });
}

/// As json.dumps writes it, with letters as they are.
std::string to_json(const Value& value, const Place& place) {
  if (value.is_discarded() || value.is_number_float())
    place.refuse(fmt::format("tojson of {} is not supported", kind_of(value)));
  if (!value.is_structured()) return value.dump(-1, ' ', false);
  std::string text(1, value.is_object() ? '{' : '[');
  for (const auto& [key, member] : value.items())
    text += (text.size() > 1 ? ", " : "") + (value.is_object() ? Value(key).dump() + ": " : "") +
            to_json(member, place);
  if (text.size() > kMostBytes) place.refuse("a string becomes too long");
  return text + (value.is_object() ? '}' : ']');
}

std::string join(const Value& list, const std::string& separator, const Place& place) {
  if (!list.is_array()) place.refuse(fmt::format("join of {} is not supported", kind_of(list)));
  std::string text;
  for (std::size_t i = 0; i < list.size(); ++i) {
    text += (i > 0 ? separator : "") + text_of(list[i], place);
    if (text.size() > kMostBytes) place.refuse("a string becomes too long");
  }
  return text;
}

Value items(const Value& object) {
  Value pairs = Value::array();
  for (const auto& [key, value] : object.items()) pairs.push_back(Value::array({key, value}));
  return pairs;
}

}  // namespace

bool is_true(const Value& value) {
  if (value.is_discarded() || value.is_null()) return false;
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number()) return value != 0;
  if (value.is_string()) return !value.get_ref<const std::string&>().empty();
  return !value.empty();
}

std::string kind_of(const Value& value) {
  if (value.is_discarded()) return "what is not defined";
  if (value.is_string()) return "a string";
  if (value.is_array()) return "a list";
  if (value.is_object()) return "a map";
  if (value.is_null()) return "none";
  return value.is_boolean() ? "true or false" : "a number";
}

std::string text_of(const Value& value, const Place& place) {
  if (value.is_discarded()) return {};
  if (value.is_string()) return value.get<std::string>();
  if (value.is_null()) return "None";
  if (value.is_boolean()) return value.get<bool>() ? "True" : "False";
  if (value.is_number_integer()) return value.dump();
  place.refuse(
      fmt::format("printing {} is not supported", value.is_number() ? "a fraction" : kind_of(value)));
}

bool is_in(const Value& value, const Value& container, const Place& place) {
  if (container.is_array()) return std::find(container.begin(), container.end(), value) != container.end();
  if (!value.is_string() || (!container.is_string() && !container.is_object()))
    place.refuse(fmt::format("{} in {} is not supported", kind_of(value), kind_of(container)));
  const std::string& text = value.get_ref<const std::string&>();
  if (container.is_object()) return container.contains(text);
  return container.get_ref<const std::string&>().find(text) != std::string::npos;
}

Value apply_filter(const std::string& name, const Value& value, const Arguments& a, const Place& place) {
  const auto text = [&]() -> const std::string& { return string_of(value, "the filter " + name, place); };
  if (name == "default" || name == "d") {
    expect(a, name, 1, 2, place);
    const bool falls =
        value.is_discarded() || (a.values.size() > 1 && is_true(a.values[1]) && !is_true(value));
    return falls ? a.values[0] : value;
  }
  if (name == "join") {
    expect(a, name, 0, 1, place);
    return join(value, a.values.empty() ? "" : string_of(a.values[0], name, place), place);
  }
  if (name == "replace") {
    expect(a, name, 2, 2, place);
    return replaced(text(), string_of(a.values[0], name, place), string_of(a.values[1], name, place), place);
  }
  expect(a, name, 0, 0, place);
  if (name == "trim") return strip(value.is_discarded() ? "" : text(), nullptr, true, true);
  if (name == "length" || name == "count") return length_of(value, place);
  if (name == "tojson") return to_json(value, place);
  if (name == "upper" || name == "lower") return in_case(text(), name == "upper", place);
  if (name == "string") return text_of(value, place);
  if (name == "safe") return text();
  if (name == "list" && (value.is_array() || value.is_object())) {
    Value list = Value::array();
    if (value.is_array()) return value;
    for (const auto& [key, member] : value.items()) list.push_back(key);
    return list;
  }
  if (name == "items" && value.is_object()) return items(value);
  if ((name == "first" || name == "last") && value.is_array())
    return value.empty() ? undefined() : name == "first" ? value.front() : value.back();
  place.refuse(fmt::format("the filter '{}' of {} is not supported", printable(name, 40), kind_of(value)));
}

bool apply_test(const std::string& name, const Value& value, const Arguments& a, const Place& place) {
  expect(a, name, 0, name == "equalto" || name == "in" ? 1 : 0, place);
  if (name == "defined") return !value.is_discarded();
  if (name == "undefined") return value.is_discarded();
  if (name == "none") return value.is_null();
  if (name == "string") return value.is_string();
  if (name == "mapping") return value.is_object();
  if (name == "iterable")
    return value.is_string() || value.is_array() || value.is_object() || value.is_discarded();
  if (name == "sequence") return value.is_string() || value.is_array() || value.is_object();
  if (name == "number") return value.is_number() || value.is_boolean();
  if (name == "integer") return value.is_number_integer();
  if (name == "boolean") return value.is_boolean();
  if (name == "true") return value.is_boolean() && value.get<bool>();
  if (name == "false") return value.is_boolean() && !value.get<bool>();
  if ((name == "odd" || name == "even") && value.is_number_integer())
    return (value.get<std::int64_t>() % 2 != 0) == (name == "odd");
  if (name == "in" && a.values.size() == 1) return is_in(value, a.values[0], place);
  if (name == "equalto" && a.values.size() == 1) return value == a.values[0];
  place.refuse(fmt::format("the test '{}' of {} is not supported", printable(name, 40), kind_of(value)));
}

Value call_method(const std::string& name, const Value& value, const Arguments& a, const Place& place) {
  static const std::set<std::string> strips = {"strip", "lstrip", "rstrip"};
  if (value.is_object() && (name == "items" || name == "get" || name == "keys")) {
    expect(a, name, name == "get" ? 1 : 0, name == "get" ? 2 : 0, place);
    if (name == "items") return items(value);
    if (name == "keys") return apply_filter("list", value, {}, place);
    const auto it = value.find(string_of(a.values[0], name, place));
    return it != value.end() ? *it : a.values.size() > 1 ? a.values[1] : Value();
  }
  const std::string& text = string_of(value, "the method " + printable(name, 40), place);
  if (strips.contains(name)) {
    expect(a, name, 0, 1, place);
    const std::string* const set = a.values.empty() ? nullptr : &string_of(a.values[0], name, place);
    return strip(text, set, name != "rstrip", name != "lstrip");
  }
  if (name == "upper" || name == "lower") {
    expect(a, name, 0, 0, place);
    return in_case(text, name == "upper", place);
  }
  if (name == "replace") return apply_filter(name, value, a, place);
  if (name == "split" || name == "startswith" || name == "endswith") {
    expect(a, name, 1, 1, place);
    const std::string& other = string_of(a.values[0], name, place);
    if (name == "split") return split(text, other, place);
    return name == "startswith" ? text.starts_with(other) : text.ends_with(other);
  }
  place.refuse(fmt::format("the method '{}' is not supported", printable(name, 40)));
}

bool is_function(const std::string& name) {
  return name == "raise_exception" || name == "namespace" || name == "range" || name == "strftime_now";
}

Value call_function(const std::string& name, const Arguments& a, const Place& place) {
  if (name == "namespace") {
    if (!a.values.empty()) place.refuse("namespace takes arguments by name only");
    Value object = Value::object();
    for (const auto& [key, value] : a.named) object[key] = value;
    return object;
  }
  if (name == "raise_exception") {
    expect(a, name, 1, 1, place);
    place.refuse("the template says: " + text_of(a.values[0], place));
  }
  if (name == "range") {
    expect(a, name, 1, 2, place);
    constexpr std::int64_t most = 100'000;
    for (const Value& bound : a.values)
      if (!bound.is_number_integer() || bound < -most || bound > most)
        place.refuse("a bound of range is too large, or no integer");
    Value list = Value::array();
    const std::int64_t end = a.values.back();
    for (std::int64_t i = a.values.size() > 1 ? a.values[0].get<std::int64_t>() : 0; i < end; ++i)
      list.push_back(i);
    return list;
  }
  if (name == "strftime_now") {
    expect(a, name, 1, 1, place);
    const std::time_t now = std::time(nullptr);
    std::tm parts{};
    char text[256];
    ::localtime_r(&now, &parts);
    return std::string(text,
                       std::strftime(text, sizeof text, string_of(a.values[0], name, place).c_str(), &parts));
  }
  place.refuse(fmt::format("the function '{}' is not supported", printable(name, 40)));
}

}  // namespace farskip::jinja
