// SPDX-License-Identifier: Apache-2.0
#pragma once
// The inner part of every dense product: operands packed into panels, and a register-tiled kernel over
// them. Each element of a product is summed over k in one fixed order (ascending inside blocks of kDepth,
// blocks in order), whatever the tile it is computed in, so results depend on no tiling at all.

#include <cstdint>

namespace farskip::cpu {

/// Blocks of b that cover a.
constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

#ifdef __AVX512F__
constexpr std::int64_t kVectorWidth = 16, kMicroRows = 14;
#else
constexpr std::int64_t kVectorWidth = 8, kMicroRows = 6;
#endif
constexpr std::int64_t kMicroColumns = 2 * kVectorWidth;
/// k is cut into blocks of this many; packed panels hold one block.
constexpr std::int64_t kDepth = 256;

constexpr std::int64_t round_up(std::int64_t n, std::int64_t step) {
  return (n + step - 1) / step * step;
}
/// Floats of `rows` x `depth` (or `depth` x `columns`) once packed: padded to whole panels.
constexpr std::int64_t packed_rows_size(std::int64_t rows, std::int64_t depth) {
  return round_up(rows, kMicroRows) * depth;
}
constexpr std::int64_t packed_columns_size(std::int64_t columns, std::int64_t depth) {
  return round_up(columns, kMicroColumns) * depth;
}

/// Left operand op(a)[m, k] → panels of kMicroRows rows, element (i, p) of a panel at p * kMicroRows + i;
/// missing rows are zeros. `transposed`: a is stored [k, m]. lda in elements.
void pack_rows(bool transposed, std::int64_t m, std::int64_t k, const float* a, std::int64_t lda,
               float* packed);
/// Right operand op(b)[k, n] → panels of kMicroColumns columns, 64-byte aligned. `transposed`: stored [n, k].
void pack_columns(bool transposed, std::int64_t n, std::int64_t k, const float* b, std::int64_t ldb,
                  float* packed);
/// c[m, n] = (accumulate ? c : 0) + A B from packed operands of depth k.
void multiply_packed(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, const float* b,
                     bool accumulate, float* c, std::int64_t ldc);

/// Widest tile that multiply_tile takes; its scratch (1.3 MB) lies on the stack.
constexpr std::int64_t kMaxTileColumns = 1024;

/// c[m, n] = (accumulate ? c : 0) + op(a)[m, k] op(b)[k, n] on the calling thread, n <= kMaxTileColumns.
void multiply_tile(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
                   const float* a, std::int64_t lda, const float* b, std::int64_t ldb, bool accumulate,
                   float* c, std::int64_t ldc);

}  // namespace farskip::cpu
