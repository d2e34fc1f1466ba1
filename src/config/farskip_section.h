// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "config/fields.h"
#include "farskip/config/run_config.h"

namespace farskip {

/// The section `farskip` of a configuration, which may be empty.
void farskip_fields(Fields& f, FarSkipConfig& config);
/// The same read alone. Mistakes, unknown keys among them, go to the reader's errors.
FarSkipConfig read_farskip_section(Reader reader);

}  // namespace farskip
