// SPDX-License-Identifier: Apache-2.0
// Compiled with the options of all other files, to know them. Holds no code, which might not run.
#include "processor_sets.h"

namespace farskip {

// A macro that is defined expands to 1, another to its own name.
#define FARSKIP_TEXT_OF(macro) #macro
#define FARSKIP_IS_USED(name, macro) FARSKIP_TEXT_OF(macro)[0] == '1',
constexpr bool used_sets[] = {FARSKIP_SETS(FARSKIP_IS_USED) false};

}  // namespace farskip
