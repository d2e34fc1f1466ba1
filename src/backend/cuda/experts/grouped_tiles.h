// SPDX-License-Identifier: Apache-2.0
#pragma once
// Grouped products of bf16 matrices on tensor cores: one product per expert, sizes read from offsets on the
// device. Why by a kernel of our own: docs/decisions/006-expert-products.md.

#include <cstdint>

#include "backend/cuda/context.h"

namespace farskip::cuda {

/// Rows of expert e are [offsets[e], offsets[e + 1]). All pointers on the device, matrices 16-byte aligned.
struct GroupedProduct {
  const LaunchContext& gpu;
  const std::int32_t* offsets;
  std::int64_t rows, experts, n, k;  // rows: as many as a and, in wgrad, b have; the experts may use fewer
  const void* a;
  const void* b;
  void* d;
  bool add = false;  // wgrad only: to what is in d
};

constexpr std::int64_t kMaxTileExperts = 1024;  // every block sorts the experts in its shared memory

/// Sizes that run_grouped_tiles_* take: the copy engine reads 16-byte pieces of arrays that are not empty,
/// and coordinates are 32-bit.
constexpr bool fits_grouped_tiles(std::int64_t rows, std::int64_t experts, std::int64_t n, std::int64_t k) {
  constexpr std::int64_t kMaxSize = 1 << 30;
  return n > 0 && k > 0 && n % 8 == 0 && k % 8 == 0 && n <= kMaxSize && k <= kMaxSize && rows <= kMaxSize &&
         experts > 0 && experts <= kMaxTileExperts;
}

/// a[R, k] · b[E, n, k]ᵀ → d[R, n], all bf16.
void run_grouped_tiles_forward(const GroupedProduct& product);
/// a[R, k] · b[E, k, n] → d[R, n], all bf16.
void run_grouped_tiles_dgrad(const GroupedProduct& product);
/// Per expert aᵀ · b of a[R, n], b[R, k], bf16 → d[E, n, k] f32. Experts without rows are not written.
void run_grouped_tiles_wgrad(const GroupedProduct& product);

}  // namespace farskip::cuda
