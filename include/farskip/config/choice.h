// SPDX-License-Identifier: Apache-2.0
#pragma once
// Names of enumerators, kept in one table per enumeration that reading, writing and messages share.

#include <fmt/format.h>

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "farskip/base/error.h"

namespace farskip {

template <class E>
struct Choice {
  std::string_view name;
  E value;
};

/// "a, b, c".
template <class E, std::size_t N>
std::string list_names(const Choice<E> (&table)[N]) {
  std::string out;
  for (const auto& choice : table) out += fmt::format("{}{}", out.empty() ? "" : ", ", choice.name);
  return out;
}

template <class E, std::size_t N>
std::string_view name_of(const Choice<E> (&table)[N], E value) {
  for (const auto& choice : table)
    if (choice.value == value) return choice.name;
  throw InternalError("an enumerator has no name");
}

template <class E, std::size_t N>
std::optional<E> find_choice(const Choice<E> (&table)[N], std::string_view name) {
  for (const auto& choice : table)
    if (choice.name == name) return choice.value;
  return {};
}

/// For command-line options: UsageError naming `option`, the value and what is allowed.
template <class E, std::size_t N>
E parse_choice(const Choice<E> (&table)[N], std::string_view name, std::string_view option) {
  if (const auto value = find_choice(table, name)) return *value;
  throw UsageError(fmt::format("{}: \"{}\" is not known; allowed: {}", option, name, list_names(table)));
}

}  // namespace farskip
