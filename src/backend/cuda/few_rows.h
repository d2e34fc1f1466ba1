// SPDX-License-Identifier: Apache-2.0
#pragma once
// bf16 products of few rows with transposed weights, as decoding has them: a tile of tensor cores would be
// nearly empty, so each warp reads rows of the weights once and keeps them for all rows of its group.

#include <cstdint>

#include "farskip/backend/kernel.h"

namespace farskip::cuda {

struct FewRowsProduct {
  const std::int32_t* offsets = nullptr;  // [groups + 1] on the device; nullptr: one group
  std::int64_t rows = 0, groups = 1;      // of x, in all
  std::int64_t n = 0, k = 0;
  const void* x = nullptr;  // bf16 [rows, k]
  const void* w = nullptr;  // bf16 [groups, n, k]
  void* out = nullptr;      // [rows, n]
  bool wide = false;        // out is f32, else bf16
};

/// Whether it is worth it, and sizes and addresses allow it.
bool fits_few_rows(const FewRowsProduct& product);
/// Each row's sums have one order, whatever other rows there are.
void run_few_rows(const KernelCall& call, const FewRowsProduct& product);

}  // namespace farskip::cuda
