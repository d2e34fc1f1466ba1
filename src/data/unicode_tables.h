// SPDX-License-Identifier: Apache-2.0
#pragma once
// Unicode's data for normal form C. Hangul syllables are left out: they are arithmetic.

#include <cstdint>
#include <span>

namespace farskip {

struct CanonicalDecomposition {
  std::uint32_t code_point, first, second;  // second 0: a singleton
  bool composes;                            // false: never put together again (composition exclusions)
};
struct CombiningClassRange {
  std::uint32_t first, last;  // inclusive
  std::uint8_t value;
};

/// Sorted by code point; one step each (the parts may decompose again).
std::span<const CanonicalDecomposition> canonical_decompositions();
/// Sorted; code points outside every range have class 0.
std::span<const CombiningClassRange> combining_class_ranges();

}  // namespace farskip
