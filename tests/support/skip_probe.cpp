// SPDX-License-Identifier: Apache-2.0
// What tests/base/skip_test.cpp runs: test cases that are skipped, some of them too late.
#include "support/catch.h"
#include "support/skip.h"

TEST_CASE("skipped") {
  CHECK(1 + 1 == 2);
  farskip::test::skip("a reason");
  CHECK(1 + 1 == 3);  // not reached
}

TEST_CASE("skipped after a failure") {
  CHECK(1 + 1 == 3);
  farskip::test::skip("a reason");
}

TEST_CASE("skipped in a section") {
  SECTION("one") {
    CHECK(1 + 1 == 2);
  }
  SECTION("two") {
    farskip::test::skip("a reason");
  }
}

TEST_CASE("not skipped") {
  CHECK(1 + 1 == 2);
}
