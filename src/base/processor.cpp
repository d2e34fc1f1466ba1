// SPDX-License-Identifier: Apache-2.0
#include "base/processor.h"

#include <unistd.h>

#include "processor_sets.h"

namespace farskip {
namespace {

/// Appends to text that ends at `end`; gives the new end. One byte stays for the final 0.
char* append(char* end, const char* last, const char* text) {
  while (*text != '\0' && end < last) *end++ = *text++;
  *end = '\0';
  return end;
}

}  // namespace

void list_missing(const InstructionSet* sets, int count, char* text, int size) {
  char* end = append(text, text + size - 1, "");
  for (const InstructionSet* set = sets; set < sets + count; ++set) {
    if (!set->used || set->supported) continue;
    if (end != text) end = append(end, text + size - 1, ", ");
    end = append(end, text + size - 1, set->name);
  }
}

void require_processor() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  int index = 0;
#define FARSKIP_FOUND_SET(name, macro) {name, used_sets[index++], __builtin_cpu_supports(name) != 0},
  const InstructionSet sets[] = {FARSKIP_SETS(FARSKIP_FOUND_SET)};
  char missing[400];
  list_missing(sets, index, missing, sizeof missing);
  if (missing[0] == '\0') return;
  char message[1000];
  char* const last = message + sizeof message - 1;
  char* end = append(message, last, "farskip: error: this program was built for processors with ");
  end = append(end, last, missing);
  end = append(
      end, last,
      ", which this one lacks. Run it on a machine like the one that it was built on, or build it here, or "
      "build it for more processors: cmake --preset release -DFARSKIP_ARCH=x86-64-v3\n");
  [[maybe_unused]] const auto written =
      ::write(STDERR_FILENO, message, static_cast<unsigned long>(end - message));
  ::_exit(70);  // ExitCode::internal; error.h takes code from the standard library along
#endif
}

}  // namespace farskip
