// SPDX-License-Identifier: Apache-2.0
#include "base/processor.h"

#include <string>
#include <vector>

#include "support/catch.h"

namespace farskip {
namespace {

std::string missing_of(const std::vector<InstructionSet>& sets, int size = 100) {
  std::string text(static_cast<std::size_t>(size), '?');
  list_missing(sets.data(), static_cast<int>(sets.size()), text.data(), size);
  return text.substr(0, text.find('\0'));
}

TEST_CASE("a processor lacks what the program uses and it does not have, nothing else") {
  CHECK(missing_of({}).empty());
  CHECK(missing_of({{"avx2", true, true}, {"fma", false, true}, {"avx512f", false, false}}).empty());
  CHECK(missing_of({{"avx512f", true, false}}) == "avx512f");
  CHECK(missing_of(
            {{"avx2", true, true}, {"avx512f", true, false}, {"gfni", false, false}, {"bmi", true, false}}) ==
        "avx512f, bmi");
}

TEST_CASE("a list of missing instruction sets that is too long is cut") {
  CHECK(missing_of({{"avx512f", true, false}, {"avx512vl", true, false}}, 12) == "avx512f, av");
}

TEST_CASE("the processor that runs this test has what it was built for") {
  CHECK_NOTHROW(require_processor());  // ends the process otherwise
}

}  // namespace
}  // namespace farskip
