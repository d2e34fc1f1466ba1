// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <vector>

#include "cli/command.h"
#include "plan/inference_plan.h"

namespace farskip {

struct InferenceCases {
  std::vector<std::int64_t> lengths, requests, batches;  // tokens of a text; texts to read; texts to continue
  std::uint64_t memory = 0;                              // of a rank, bytes, that is to be fitted; 0: any
};
/// On stdout: a row for each run, wiring and schedule; what is too large for the memory is marked.
void print_inference_plans(InferencePlanRequest request, const InferenceCases& cases,
                           const CommonOptions& common);

}  // namespace farskip
