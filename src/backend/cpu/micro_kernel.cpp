// SPDX-License-Identifier: Apache-2.0
#include "backend/cpu/micro_kernel.h"

#include <algorithm>
#include <cstring>

#include "backend/cpu/progress.h"

namespace farskip::cpu {
namespace {

/// Rows packed at once: they fit a second-level cache of 512 KiB.
constexpr std::int64_t kBlockRows = 252;

using Vector = float __attribute__((vector_size(4 * kVectorWidth)));
using Four = float __attribute__((vector_size(16)));

// From and to memory of any alignment. (A typedef with less alignment says the same, and clang forgets it on
// the way through a function.)
template <class V>
V load_unaligned(const float* from) {
  V values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}
template <class V>
void store_unaligned(float* to, V values) {
  std::memcpy(to, &values, sizeof(values));
}

/// c[kMicroRows, kMicroColumns] of one pair of panels; all of it stays in registers.
template <bool accumulate>
void micro_kernel(std::int64_t k, const float* __restrict a, const float* __restrict b, float* __restrict c,
                  std::int64_t ldc) {
  // The corner of c is needed k steps from now; its rows lie too far apart for the hardware to foresee.
  if constexpr (accumulate)
    for (std::int64_t i = 0; i < kMicroRows; ++i) __builtin_prefetch(c + i * ldc, 1);
  Vector sums[kMicroRows][2] = {};
  for (std::int64_t p = 0; p < k; ++p) {
    const Vector b0 = *reinterpret_cast<const Vector*>(b);
    const Vector b1 = *reinterpret_cast<const Vector*>(b + kVectorWidth);
#pragma GCC unroll 14
    for (std::int64_t i = 0; i < kMicroRows; ++i) {
      const Vector x = a[i] - Vector{};
      sums[i][0] += x * b0;
      sums[i][1] += x * b1;
    }
    a += kMicroRows;
    b += kMicroColumns;
  }
#pragma GCC unroll 14
  for (std::int64_t i = 0; i < kMicroRows; ++i) {
    const auto put = [](float* to, const Vector& sum) {
      store_unaligned(to, accumulate ? load_unaligned<Vector>(to) + sum : sum);
    };
    put(c + i * ldc, sums[i][0]);
    put(c + i * ldc + kVectorWidth, sums[i][1]);
  }
}

/// to[p * to_stride + i] = from[i * from_stride + p] for 4 x 4 elements.
void transpose_four(const float* from, std::int64_t from_stride, float* to, std::int64_t to_stride) {
  const auto load = [&](std::int64_t i) { return load_unaligned<Four>(from + i * from_stride); };
  const Four r0 = load(0), r1 = load(1), r2 = load(2), r3 = load(3);
  const Four low01 = __builtin_shufflevector(r0, r1, 0, 4, 1, 5);
  const Four high01 = __builtin_shufflevector(r0, r1, 2, 6, 3, 7);
  const Four low23 = __builtin_shufflevector(r2, r3, 0, 4, 1, 5);
  const Four high23 = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
  const auto store = [&](std::int64_t p, Four x) { store_unaligned(to + p * to_stride, x); };
  store(0, __builtin_shufflevector(low01, low23, 0, 1, 4, 5));
  store(1, __builtin_shufflevector(low01, low23, 2, 3, 6, 7));
  store(2, __builtin_shufflevector(high01, high23, 0, 1, 4, 5));
  store(3, __builtin_shufflevector(high01, high23, 2, 3, 6, 7));
}

/// One panel of `width` vectors of length k, stored one after the other (stride ld), interleaved.
template <std::int64_t width>
void pack_transposing(std::int64_t count, std::int64_t k, const float* from, std::int64_t ld, float* to) {
  std::int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    std::int64_t p = 0;
    for (; p + 4 <= k; p += 4) transpose_four(from + i * ld + p, ld, to + p * width + i, width);
    for (; p < k; ++p)
      for (std::int64_t j = i; j < i + 4; ++j) to[p * width + j] = from[j * ld + p];
  }
  for (; i < count; ++i)
    for (std::int64_t p = 0; p < k; ++p) to[p * width + i] = from[i * ld + p];
  for (; i < width; ++i)
    for (std::int64_t p = 0; p < k; ++p) to[p * width + i] = 0;
}

/// Elements of a row that packing by rows takes at once.
constexpr std::int64_t kPackedAtOnce = 128;

template <std::int64_t width>
void pack(bool copying, std::int64_t n, std::int64_t k, const float* from, std::int64_t ld, float* packed) {
  if (!copying) {
    for (std::int64_t i = 0; i < n; i += width)
      pack_transposing<width>(std::min(width, n - i), k, from + i * ld, ld, packed + i * k);
    return;
  }
  // The source holds k rows of all panels: read several panels' worth of each row at once. Panel by panel
  // would touch one line of every row, and rows a power of two apart fall into the same few cache sets.
  constexpr std::int64_t group = kPackedAtOnce / width * width;
  for (std::int64_t g = 0; g < n; g += group) {
    const std::int64_t count = std::min(group, n - g), whole = count / width * width;
    float* to = packed + g * k;
    for (std::int64_t p = 0; p < k; ++p, to += width) {
      const float* row = from + p * ld + g;
      for (std::int64_t i = 0; i < whole; i += width) std::memcpy(to + i * k, row + i, width * sizeof(float));
      if (whole < count)
        for (std::int64_t i = 0; i < width; ++i)
          to[whole * k + i] = whole + i < count ? row[whole + i] : 0.0F;
    }
  }
}

}  // namespace

void pack_rows(bool transposed, std::int64_t m, std::int64_t k, const float* a, std::int64_t lda,
               float* packed) {
  pack<kMicroRows>(transposed, m, k, a, lda, packed);
}

void pack_columns(bool transposed, std::int64_t n, std::int64_t k, const float* b, std::int64_t ldb,
                  float* packed) {
  pack<kMicroColumns>(!transposed, n, k, b, ldb, packed);
}

void multiply_packed(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, const float* b,
                     bool accumulate, float* c, std::int64_t ldc) {
  alignas(64) float edge[kMicroRows * kMicroColumns];
  // The panel of b stays in the first-level cache while all panels of a pass by.
  for (std::int64_t j = 0; j < n; j += kMicroColumns) {
    for (std::int64_t i = 0; i < m; i += kMicroRows) {
      const float* a_panel = a + i * k;
      const float* b_panel = b + j * k;
      float* corner = c + i * ldc + j;
      const std::int64_t rows = std::min(kMicroRows, m - i), columns = std::min(kMicroColumns, n - j);
      if (rows == kMicroRows && columns == kMicroColumns) {
        (accumulate ? micro_kernel<true> : micro_kernel<false>)(k, a_panel, b_panel, corner, ldc);
        continue;
      }
      micro_kernel<false>(k, a_panel, b_panel, edge, kMicroColumns);
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t s = 0; s < columns; ++s) {
          const float sum = edge[r * kMicroColumns + s];
          corner[r * ldc + s] = accumulate ? corner[r * ldc + s] + sum : sum;
        }
    }
  }
}

void multiply_tile(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
                   const float* a, std::int64_t lda, const float* b, std::int64_t ldb, bool accumulate,
                   float* c, std::int64_t ldc) {
  alignas(64) float a_packed[packed_rows_size(kBlockRows, kDepth)];
  alignas(64) float b_packed[packed_columns_size(kMaxTileColumns, kDepth)];
  for (std::int64_t p = 0; p < k; p += kDepth) {
    const std::int64_t depth = std::min(kDepth, k - p);
    pack_columns(transpose_b, n, depth, transpose_b ? b + p : b + p * ldb, ldb, b_packed);
    for (std::int64_t i = 0; i < m; i += kBlockRows) {
      const std::int64_t rows = std::min(kBlockRows, m - i);
      pack_rows(transpose_a, rows, depth, transpose_a ? a + p * lda + i : a + i * lda + p, lda, a_packed);
      multiply_packed(rows, n, depth, a_packed, b_packed, accumulate || p > 0, c + i * ldc, ldc);
      poll_progress();  // a whole tile may take tens of milliseconds
    }
  }
  if (k == 0 && !accumulate)
    for (std::int64_t i = 0; i < m; ++i) std::fill_n(c + i * ldc, n, 0.0F);
}

}  // namespace farskip::cpu
