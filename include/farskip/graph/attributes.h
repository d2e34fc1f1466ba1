// SPDX-License-Identifier: Apache-2.0
#pragma once
// Attributes of an op: a plain struct that lists its fields once, from which text, parsing and equality
// follow. Example:
//
//   struct RmsNorm {
//     double eps = 1e-6;
//     static void fields(auto& self, auto&& f) { f("eps", self.eps); }
//   };
//
// Field types: bool, std::int64_t, double, std::string, std::vector<std::int64_t>, and enums for which
// `constexpr auto enum_names(E)` returns an array of the names in order of value.

#include <charconv>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <typeinfo>
#include <vector>

#include "farskip/base/error.h"

namespace farskip {

/// Text of each field by name, e.g. {"eps": "1e-06"}.
using FieldTexts = std::map<std::string, std::string, std::less<>>;

namespace detail {

std::string field_text(bool value);
std::string field_text(std::int64_t value);
std::string field_text(double value);  // shortest text that reads back to the same bits
std::string field_text(const std::string& value);
std::string field_text(const std::vector<std::int64_t>& value);
void parse_field(std::string_view text, bool& value);
void parse_field(std::string_view text, std::int64_t& value);
void parse_field(std::string_view text, double& value);
void parse_field(std::string_view text, std::string& value);
void parse_field(std::string_view text, std::vector<std::int64_t>& value);

template <class E>
requires std::is_enum_v<E> std::string field_text(E value) {
  return std::string(enum_names(E{})[static_cast<std::size_t>(value)]);
}
template <class E>
requires std::is_enum_v<E>
void parse_field(std::string_view text, E& value) {
  constexpr auto names = enum_names(E{});
  for (std::size_t i = 0; i < names.size(); ++i)
    if (names[i] == text) {
      value = static_cast<E>(i);
      return;
    }
  throw DataError(fmt::format("unknown attribute value '{}'", text));
}

}  // namespace detail

/// Immutable, type-erased attribute struct of a node.
class Attributes {
 public:
  template <class A>
  static Attributes of(A value) {
    Attributes attributes;
    attributes.held_ = std::make_shared<Holder<A>>(std::move(value));
    return attributes;
  }

  /// Reads the fields of A; missing ones keep their default, unknown ones are a DataError.
  template <class A>
  static Attributes parse(const FieldTexts& texts) {
    A value;
    std::size_t known = 0;
    A::fields(value, [&](std::string_view name, auto& field) {
      const auto it = texts.find(name);
      if (it == texts.end()) return;
      detail::parse_field(it->second, field);
      ++known;
    });
    if (known != texts.size()) throw DataError("unknown attribute");
    return of(std::move(value));
  }

  template <class A>
  const A& get() const {
    FARSKIP_CHECK(held_ && held_->type() == typeid(A), "attributes are not of type {}", typeid(A).name());
    return static_cast<const Holder<A>&>(*held_).value;
  }

  /// "eps=1e-06, heads=4"; empty for an op without attributes.
  std::string text() const { return held_ ? held_->text() : std::string(); }
  friend bool operator==(const Attributes& a, const Attributes& b) { return a.text() == b.text(); }

 private:
  struct Held {
    virtual ~Held() = default;
    virtual std::string text() const = 0;
    virtual const std::type_info& type() const = 0;
  };
  template <class A>
  struct Holder final : Held {
    explicit Holder(A v) : value(std::move(v)) {}
    std::string text() const override {
      std::string out;
      A::fields(value, [&](std::string_view name, const auto& field) {
        if (!out.empty()) out += ", ";
        out.append(name).append("=").append(detail::field_text(field));
      });
      return out;
    }
    const std::type_info& type() const override { return typeid(A); }
    A value;
  };
  std::shared_ptr<const Held> held_;
};

/// For ops without attributes.
struct NoAttributes {
  static void fields(auto&, auto&&) {}
};

}  // namespace farskip
