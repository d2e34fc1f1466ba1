// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>

#include "comm/communicator_impl.h"

namespace farskip {

std::int64_t element_bytes(ElementType type);

/// out[i] = inputs[0][i] ∘ inputs[1][i] ∘ …, from left to right, for `count` elements. `out` may be one of
/// the inputs.
void reduce_in_order(ElementType type, Reduction reduction, std::span<const void* const> inputs, void* out,
                     std::int64_t count);

}  // namespace farskip
