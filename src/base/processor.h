// SPDX-License-Identifier: Apache-2.0
#pragma once
// The processor that this program was compiled for, and the one that it runs on. What is declared here runs
// on every processor: it is compiled without the instruction sets that it looks for, and uses nothing of the
// standard library, of which the linker might take a copy that another file compiled with them.

namespace farskip {

/// A set of instructions that the compiler may use, where this processor has it.
struct InstructionSet {
  const char* name;  // "avx2"
  bool used;         // by this program
  bool supported;    // by this processor and its operating system
};

/// Writes to `text`, of `size` bytes, what of the `count` sets is used and not supported: "avx2, fma", cut
/// where it is too long; "" where nothing is.
void list_missing(const InstructionSet* sets, int count, char* text, int size);

/// Ends the process with an error and ExitCode::internal where this processor lacks what the program uses. To
/// be called before anything else.
void require_processor();

}  // namespace farskip
