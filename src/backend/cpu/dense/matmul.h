// SPDX-License-Identifier: Apache-2.0
#pragma once
// Dense products as lists of independent tiles, so that one parallel loop can serve one product or many.

#include <cstdint>

namespace farskip::cpu {

/// c[m, n] = op(a)[m, k] op(b)[k, n] (+ accumulate[m, n], which may be c itself or nullptr), row-major.
struct Product {
  bool transpose_a = false, transpose_b = false;
  std::int64_t m = 0, n = 0, k = 0;
  const float* a = nullptr;
  std::int64_t lda = 0;
  const float* b = nullptr;
  std::int64_t ldb = 0;
  float* c = nullptr;
  std::int64_t ldc = 0;
  const float* accumulate = nullptr;  // same leading dimension as c
};

/// Even parts of a product. Tiles decide who computes an element, never its bits (micro_kernel.h).
struct Tiling {
  std::int64_t rows = 1, columns = 1;          // of a tile; the last one is smaller
  std::int64_t num_rows = 0, num_columns = 0;  // tiles down and across
  std::int64_t count() const { return num_rows * num_columns; }
};
/// Who works on a product: all threads, shared with `siblings` products in the same parallel loop.
struct Workers {
  std::int64_t threads = 1, siblings = 1;
};
/// Call it outside of the loop: inside, a thread sees only itself.
Workers available_workers(std::int64_t siblings = 1);
/// The tiling with the least estimated time: whole rounds of all threads, few elements packed twice.
Tiling choose_tiling(const Product& product, Workers workers);

/// Computes tile i of the product on the calling thread (inside parallel_for).
void run_tile(const Product& product, const Tiling& tiling, std::int64_t i);

/// The whole product over all threads.
void multiply(const Product& product);

}  // namespace farskip::cpu
