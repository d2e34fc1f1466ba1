// SPDX-License-Identifier: Apache-2.0
#include "support/skip.h"

#include "support/catch.h"
#include "support/support.h"

namespace farskip::test {
namespace {

CommandResult run_probe(const char* cases) {
  return run_command(std::string(FARSKIP_SKIP_PROBE " '") + cases + "'");
}

TEST_CASE("a skipped test case has an exit code of its own, and says why") {
  const CommandResult skipped = run_probe("skipped");
  CHECK(skipped.status == kSkipped);
  CHECK_THAT(skipped.out, ContainsSubstring("a reason"));
  CHECK(run_probe("skipped in a section").status == kSkipped);
}

TEST_CASE("skipping hides no check that failed before it, and no test case that ran") {
  for (const char* cases : {"skipped after a failure", "skipped,skipped after a failure"}) {
    const int status = run_probe(cases).status;  // 1 or, with Catch2 3.7, 42
    CHECK(status != 0);
    CHECK(status != kSkipped);
  }
  CHECK(run_probe("skipped,not skipped").status == 0);
  CHECK(run_probe("not skipped").status == 0);
}

}  // namespace
}  // namespace farskip::test
