// SPDX-License-Identifier: Apache-2.0
#pragma once
// Strong integer identifiers: a ValueId is not a NodeId, and neither is an int.

#include <compare>
#include <cstdint>
#include <functional>

namespace farskip {

template <class Tag>
struct Id {
  std::int32_t value = -1;  // -1: none

  constexpr Id() = default;
  constexpr explicit Id(std::int32_t v) : value(v) {}
  constexpr explicit Id(std::size_t v) : value(static_cast<std::int32_t>(v)) {}
  constexpr explicit operator bool() const { return value >= 0; }
  constexpr std::size_t index() const { return static_cast<std::size_t>(value); }
  // clang-tidy 14 takes the defaulted comparison for one with 0.
  friend constexpr auto operator<=>(const Id&, const Id&) = default;  // NOLINT(modernize-use-nullptr)
};

}  // namespace farskip

template <class Tag>
struct std::hash<farskip::Id<Tag>> {
  std::size_t operator()(farskip::Id<Tag> id) const noexcept { return std::hash<std::int32_t>{}(id.value); }
};
