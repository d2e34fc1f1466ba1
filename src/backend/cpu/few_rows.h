// SPDX-License-Identifier: Apache-2.0
#pragma once
// Products of few rows with a transposed right operand (weights), whose reading takes the time: it is read
// where it lies, once, instead of being packed. Elements have the bits that micro_kernel.h gives them.

#include <cstdint>

namespace farskip::cpu {

/// Up to this many rows packing costs more than it saves.
constexpr std::int64_t kFewRows = 16;

/// c[m, n] = (accumulate ? c : 0) + a[m, k] bᵀ, b stored [n, k], on the calling thread.
void multiply_few_rows(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t lda,
                       const float* b, std::int64_t ldb, bool accumulate, float* c, std::int64_t ldc);

}  // namespace farskip::cpu
