// SPDX-License-Identifier: Apache-2.0
// This file is compiled for every processor (CMakeLists.txt).
#include "base/processor.h"
#include "cli/command.h"

// Before every other initialisation, which may use what this processor lacks.
[[gnu::constructor(101)]] static void check_processor() {
  farskip::require_processor();
}

int main(int argc, char** argv) {
  return farskip::run_command_line(argc, argv);
}
