// SPDX-License-Identifier: Apache-2.0
#pragma once
// Runs side by side as tables.

#include <string>
#include <vector>

#include "report/run_log.h"

namespace farskip {

/// The figures of the runs, a row each; for one run, the figures side by side. Columns without a value are
/// left out.
std::string comparison_html(const std::vector<RunLog>& runs);
/// What config.yaml says: once where all runs say the same, else by run.
std::string facts_html(const std::vector<RunLog>& runs);

}  // namespace farskip
