// SPDX-License-Identifier: Apache-2.0
#pragma once
// What may change between a checkpoint and the start that resumes from it: one row for every key of the
// configuration, and for what its paths hold.

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/config/run_config.h"

namespace farskip {

enum class AtResume {
  refused,     // the run would not be the same run any more
  warned,      // allowed, and said with both values
  free,        // changes where, how fast or how long, or the order of sums, but not what is computed
  by_content,  // not compared itself: what it stands for is, by a row "contents of …" or as the model
};

struct ResumeRule {
  std::string_view key;  // train.steps, or "contents of data"
  AtResume at_resume;
  std::string_view effect = {};  // of a change, for the warning
};
/// Every key of docs/configuration.md once, and the rows for contents.
std::span<const ResumeRule> resume_rules();

/// Values that a checkpoint remembers, by key: those of rows that are refused or warned of.
using RunSettings = std::map<std::string, std::string>;

/// Names of the rows for contents.
inline constexpr const char* kDataContents = "contents of data";
inline constexpr const char* kValidationContents = "contents of data.validation";
inline constexpr const char* kTokenizerContents = "contents of the tokenizer";
inline constexpr const char* kTeacherContents = "contents of distill.teacher";

/// `contents`: by these names; "none" stands for one that is left out.
RunSettings settings_of(const RunConfig& config, const RunSettings& contents);

/// What differs, a line each: "train.steps: checkpoint 10, now 20".
struct ChangedSettings {
  std::vector<std::string> refused, warned;
};
/// Rows that the checkpoint does not know (an earlier version wrote it) are not compared.
ChangedSettings compare_settings(const RunSettings& saved, const RunSettings& now);

/// Returns the lines of compare_settings that ask a run, which has nothing left to do, for other work than
/// was `done`. How many steps there are does not count (nor what follows from that), nor how ranks cut them
/// up.
std::vector<std::string> find_other_work(const RunSettings& done, RunSettings asked);

}  // namespace farskip
