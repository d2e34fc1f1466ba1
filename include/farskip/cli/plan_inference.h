// SPDX-License-Identifier: Apache-2.0
#pragma once
#include <vector>

#include "farskip/cli/command.h"
#include "farskip/measure/inference_plan.h"

namespace farskip {

struct InferenceCases {
  std::vector<std::int64_t> lengths, requests, batches;  // tokens of a text; texts to read; texts to continue
};
/// On stdout: a row for each run, wiring and schedule.
void print_inference_plans(InferencePlanRequest request, const InferenceCases& cases,
                           const CommonOptions& common);

}  // namespace farskip
