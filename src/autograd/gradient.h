// SPDX-License-Identifier: Apache-2.0
#pragma once
// Reverse-mode differentiation of a graph. Knows no op by name: each op's own rule emits its gradient as
// ops, so the backward is open to every pass and to the scheduler like the forward.

#include <span>
#include <vector>

#include "farskip/graph/graph.h"

namespace farskip {

/// A value to differentiate, weighted with `seed` (same type): the objective is Σ seed · value.
struct Objective {
  ValueId value, seed;
};

/// Appends to `graph` the ops that compute d(Σ seed · value) / d(wanted[i]) and returns these gradients,
/// one per wanted value; none where the objective does not depend on it. Contributions to one value are
/// added in the order in which the reverse sweep meets its readers. Throws InternalError naming the op
/// when a gradient is needed through an op without a rule.
std::vector<ValueId> differentiate(Graph& graph, std::span<const Objective> objectives,
                                   std::span<const ValueId> wanted);

}  // namespace farskip
