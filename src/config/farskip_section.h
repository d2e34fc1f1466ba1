// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "farskip/config/reader.h"
#include "farskip/config/run_config.h"

namespace farskip {

/// Reads the section `farskip` of a configuration, which may be empty. Mistakes go to the reader's errors.
FarSkipConfig read_farskip_section(Reader reader);

}  // namespace farskip
