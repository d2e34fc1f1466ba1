// SPDX-License-Identifier: Apache-2.0
#pragma once
#include "farskip/graph/graph.h"

namespace farskip {

/// Where a graph holds linear_cross_entropy (or a loss of distillation) and its gradient over the same
/// inputs, only the gradient op stays: it computes the loss from the same logits, which saves a product with
/// each head. Changes which node produces the loss; no value changes but by the order of its sum.
Graph fuse_loss(const Graph& graph);

}  // namespace farskip
