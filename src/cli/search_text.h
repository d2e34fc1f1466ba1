// SPDX-License-Identifier: Apache-2.0
#pragma once
// What `farskip plan --search` found, as people and programs read it.

#include "cli/record.h"
#include "plan/plan_search.h"

namespace farskip {

struct SearchReport {
  int ranks = 1;
  std::uint64_t memory = 0;  // bytes of a rank that were to be fitted
  std::int64_t tokens = 0;   // of a step
  SearchSpace space;
  std::vector<SearchResult> results;  // of search_plans
  double seconds = 0;                 // that the search took
};

Record search_record(const SearchReport& report);
/// Such a record on stdout; the best twenty and as many that do not fit, or `all`.
void print_search(const Record& report, bool all);

}  // namespace farskip
