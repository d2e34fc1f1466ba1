// SPDX-License-Identifier: Apache-2.0
#pragma once
// Tests that need what a machine may lack: a GPU, another program.

#include <string>

namespace farskip::test {

/// Ends the test case as skipped, so that it is not counted as passed: the reason is printed, and a program
/// whose test cases were all skipped exits with kSkipped. A check that failed before still fails the case.
[[noreturn]] void skip(const std::string& reason);

/// As Catch2 v3 has it; tests/CMakeLists.txt tells ctest.
inline constexpr int kSkipped = 4;

}  // namespace farskip::test
