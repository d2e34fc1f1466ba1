// SPDX-License-Identifier: Apache-2.0
#pragma once
// The one Catch2 include of the tests; hides the difference between v2 and v3.
#ifdef FARSKIP_CATCH_V2
#include <catch2/catch.hpp>
namespace Catch {
using Detail::Approx;
}
namespace Catch::Matchers {
inline auto ContainsSubstring(const std::string& text) {
  return Contains(text);
}
}  // namespace Catch::Matchers
#else
#include <catch2/catch_all.hpp>
#endif
using Catch::Matchers::ContainsSubstring;
