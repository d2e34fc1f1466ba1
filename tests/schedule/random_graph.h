// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <random>

#include "farskip/graph/graph.h"

namespace farskip::test {

/// Sums, products and collectives over two ranks, some results of which nobody reads, and updated state.
Graph make_random_graph(std::mt19937& random);

}  // namespace farskip::test
