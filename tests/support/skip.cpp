// SPDX-License-Identifier: Apache-2.0
#include "support/skip.h"

#ifdef FARSKIP_CATCH_V2
#define CATCH_CONFIG_EXTERNAL_INTERFACES
#endif
#include "support/catch.h"

#ifdef FARSKIP_CATCH_V2

#include <cstdio>
#include <cstdlib>
#include <iostream>

namespace farskip::test {
namespace {

bool skipped = false;  // in the test case that runs now

/// Catch2 v2 knows no skipping: it sees a test case without a failure.
struct SkippedCases : Catch::TestEventListenerBase {
  using TestEventListenerBase::TestEventListenerBase;

  void testCaseStarting(const Catch::TestCaseInfo&) override { skipped = false; }
  void testCaseEnded(const Catch::TestCaseStats&) override { num_skipped_ += skipped ? 1 : 0; }
  void testRunEnded(const Catch::TestRunStats& stats) override {
    const Catch::Counts& cases = stats.totals.testCases;
    if (num_skipped_ == 0 || cases.total() != num_skipped_ || !cases.allPassed()) return;
    std::atexit([] {
      std::cout.flush();
      std::fflush(nullptr);
      std::_Exit(kSkipped);
    });
  }

 private:
  std::size_t num_skipped_ = 0;
};
CATCH_REGISTER_LISTENER(SkippedCases)

}  // namespace

void skip(const std::string& reason) {
  skipped = true;
  std::printf("skipped: %s\n", reason.c_str());
  throw Catch::TestFailureException();  // leaves the test case, and by itself fails nothing
}

}  // namespace farskip::test

#else

#include <cstdlib>

namespace farskip::test {

void skip(const std::string& reason) {
  SKIP(reason);
  std::abort();  // for the compiler: the line above has thrown
}

}  // namespace farskip::test

#endif
