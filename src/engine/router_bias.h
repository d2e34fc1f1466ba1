// SPDX-License-Identifier: Apache-2.0
#pragma once
// Balancing of experts without a loss: biases that take part in the choice are moved after each step.

#include <map>
#include <vector>

#include "farskip/state/states.h"

namespace farskip {

/// bias[e] += rate · sign(mean rows of an expert − rows of e), of every router with a bias (arXiv
/// 2408.15664). `expert_rows`: by layer, rows of each expert over all ranks in one step; the same on all
/// ranks, so that their biases stay the same.
void move_router_biases(States& states, const std::map<int, std::vector<double>>& expert_rows, double rate);

}  // namespace farskip
