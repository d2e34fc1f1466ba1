// SPDX-License-Identifier: Apache-2.0
#pragma once
// Two runs of one task are compared.

#include "layouts.h"

namespace farskip::test {

/// The rule for another layout: sums are taken in another order, and nothing else differs.
void check_same_training(const Outcome& got, const Outcome& want);
void check_same_bits(const Outcome& got, const Outcome& want);

}  // namespace farskip::test
