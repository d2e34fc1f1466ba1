// SPDX-License-Identifier: Apache-2.0
#pragma once
// What `farskip plan --search` found, as people and programs read it.

#include <nlohmann/json_fwd.hpp>

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

/// On stdout; the best twenty and as many that do not fit, or `all`.
void print_search(const PlanRequest& base, const SearchReport& report, bool all);
nlohmann::ordered_json search_json(const SearchReport& report);

}  // namespace farskip
