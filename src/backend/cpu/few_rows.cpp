// SPDX-License-Identifier: Apache-2.0
#include "backend/cpu/few_rows.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "backend/cpu/micro_kernel.h"
#include "backend/cpu/progress.h"

namespace farskip::cpu {
namespace {

using Vector = float __attribute__((vector_size(4 * kVectorWidth)));
using Four = float __attribute__((vector_size(16)));
using Eight = float __attribute__((vector_size(32)));

template <class V>
V load(const float* from) {
  V values;
  std::memcpy(&values, from, sizeof(values));
  return values;
}

// Every quarter (half, of vectors of eight) of a vector holds four steps in k of one column. Four such
// vectors are transposed within their quarters, so that each holds one step of all columns.
#ifdef __AVX512F__
Vector join_columns(const float* from, std::int64_t ld) {
  const Eight low =
      __builtin_shufflevector(load<Four>(from), load<Four>(from + 4 * ld), 0, 1, 2, 3, 4, 5, 6, 7);
  const Eight high =
      __builtin_shufflevector(load<Four>(from + 8 * ld), load<Four>(from + 12 * ld), 0, 1, 2, 3, 4, 5, 6, 7);
  return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
Vector low_pairs(Vector x, Vector y) {
  return __builtin_shufflevector(x, y, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
}
Vector high_pairs(Vector x, Vector y) {
  return __builtin_shufflevector(x, y, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}
Vector first_halves(Vector x, Vector y) {
  return __builtin_shufflevector(x, y, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
}
Vector second_halves(Vector x, Vector y) {
  return __builtin_shufflevector(x, y, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
}
#else
Vector join_columns(const float* from, std::int64_t ld) {
  return __builtin_shufflevector(load<Four>(from), load<Four>(from + 4 * ld), 0, 1, 2, 3, 4, 5, 6, 7);
}
Vector low_pairs(Vector x, Vector y) {
  return __builtin_shufflevector(x, y, 0, 8, 1, 9, 4, 12, 5, 13);
}
Vector high_pairs(Vector x, Vector y) {
  return __builtin_shufflevector(x, y, 2, 10, 3, 11, 6, 14, 7, 15);
}
Vector first_halves(Vector x, Vector y) {
  return __builtin_shufflevector(x, y, 0, 1, 8, 9, 4, 5, 12, 13);
}
Vector second_halves(Vector x, Vector y) {
  return __builtin_shufflevector(x, y, 2, 3, 10, 11, 6, 7, 14, 15);
}
#endif

constexpr std::int64_t kSteps = 4;  // in k, taken at once
using Steps = std::array<Vector, kSteps>;

/// Steps 0 to 3 of kVectorWidth columns that begin at `from`.
Steps load_steps(const float* from, std::int64_t ld) {
  const Vector c0 = join_columns(from, ld), c1 = join_columns(from + ld, ld);
  const Vector c2 = join_columns(from + 2 * ld, ld), c3 = join_columns(from + 3 * ld, ld);
  const Vector low01 = low_pairs(c0, c1), high01 = high_pairs(c0, c1);
  const Vector low23 = low_pairs(c2, c3), high23 = high_pairs(c2, c3);
  return {first_halves(low01, low23), second_halves(low01, low23), first_halves(high01, high23),
          second_halves(high01, high23)};
}

/// One step of `count` columns, zeros past the last.
Vector load_step(const float* from, std::int64_t ld, std::int64_t count) {
  std::array<float, kVectorWidth> values{};
  for (std::int64_t j = 0; j < count; ++j) values[static_cast<std::size_t>(j)] = from[j * ld];
  return load<Vector>(values.data());
}

/// Some columns of a product, and a block of its depth.
struct Columns {
  const float* b;
  std::int64_t ldb, count, depth;
};

/// c (+)= a times the columns, summed as micro_kernel.cpp sums a block.
template <std::int64_t rows>
void add_rows(const Columns& x, const float* a, std::int64_t lda, bool accumulate, float* c,
              std::int64_t ldc) {
  Vector sums[rows] = {};
  std::int64_t p = 0;
  for (; x.count == kVectorWidth && p + kSteps <= x.depth; p += kSteps) {
    const Steps steps = load_steps(x.b + p, x.ldb);
#pragma GCC unroll 8
    for (std::int64_t i = 0; i < rows; ++i)
#pragma GCC unroll 4
      for (std::int64_t s = 0; s < kSteps; ++s)
        sums[i] += (a[i * lda + p + s] - Vector{}) * steps[static_cast<std::size_t>(s)];
  }
  for (; p < x.depth; ++p) {
    const Vector step = load_step(x.b + p, x.ldb, x.count);
    for (std::int64_t i = 0; i < rows; ++i) sums[i] += (a[i * lda + p] - Vector{}) * step;
  }
  for (std::int64_t i = 0; i < rows; ++i) {
    std::array<float, kVectorWidth> sum;
    std::memcpy(sum.data(), &sums[i], sizeof(sum));
    float* to = c + i * ldc;
    for (std::int64_t j = 0; j < x.count; ++j)
      to[j] = accumulate ? to[j] + sum[static_cast<std::size_t>(j)] : sum[static_cast<std::size_t>(j)];
  }
}

constexpr std::int64_t kMostRows = 8;  // whose sums stay in registers
using AddRows = void (*)(const Columns&, const float*, std::int64_t, bool, float*, std::int64_t);
constexpr std::array<AddRows, kMostRows> kAddRows{add_rows<1>, add_rows<2>, add_rows<3>, add_rows<4>,
                                                  add_rows<5>, add_rows<6>, add_rows<7>, add_rows<8>};

}  // namespace

void multiply_few_rows(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t lda,
                       const float* b, std::int64_t ldb, bool accumulate, float* c, std::int64_t ldc) {
  if (k == 0 && !accumulate)
    for (std::int64_t i = 0; i < m; ++i) std::fill_n(c + i * ldc, n, 0.0F);
  for (std::int64_t j = 0; j < n; j += kVectorWidth) {
    for (std::int64_t p = 0; p < k; p += kDepth) {
      const Columns columns{b + j * ldb + p, ldb, std::min(kVectorWidth, n - j), std::min(kDepth, k - p)};
      for (std::int64_t i = 0; i < m; i += kMostRows)
        kAddRows[static_cast<std::size_t>(std::min(kMostRows, m - i) - 1)](
            columns, a + i * lda + p, lda, accumulate || p > 0, c + i * ldc + j, ldc);
    }
    poll_progress();
  }
}

}  // namespace farskip::cpu
