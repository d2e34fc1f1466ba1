#pragma once
// Failpoints: named places where a test can make the shipped program fail. Always compiled in, inert
// unless the environment says FARSKIP_FAULT="name[:rank][:kill|error|exit]".

#include <string_view>

namespace farskip {

/// Does nothing unless FARSKIP_FAULT names this point and, where it gives a rank, this rank. Then:
/// kill (the default) ends the process with SIGKILL; error throws IoError; exit leaves at once with
/// code 75. Throws UsageError when the variable cannot be read.
void failpoint(std::string_view name, int rank = 0);

}  // namespace farskip
