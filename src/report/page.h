// SPDX-License-Identifier: Apache-2.0
#pragma once
// One self-contained HTML page about one run, or about several side by side.

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "report/run_log.h"

namespace farskip {

/// The page: no resource from outside, below 1 MB whatever the length of the runs. What a file of a run lacks
/// or gets wrong is left out and said in RunLog::notes, which receive what is found here.
std::string report_html(std::vector<RunLog>& runs);
/// How every page begins.
inline constexpr std::string_view kPageBegin = "<!DOCTYPE html>";

/// {"runs": [{"name", "run_dir", "wiring", "ranks", "steps", "loss", …}]}: the comparison table, without the
/// figures that a run does not have.
nlohmann::ordered_json comparison_json(const std::vector<RunLog>& runs);

}  // namespace farskip
