#pragma once
// Grouped products of bf16 matrices on tensor cores: one product per expert, sizes read from offsets on the
// device. Twice: by CUTLASS (grouped_gemm.cuh; one file a direction, since each takes a compiler a minute),
// and by a kernel of our own (grouped_tiles.cuh).

#include <cstddef>
#include <cstdint>
#include <span>

#include "farskip/backend/cuda/context.h"

namespace farskip::cuda {

/// Rows of expert e are [offsets[e], offsets[e + 1]). All pointers on the device, 16-byte aligned; n and k
/// are multiples of 8 (the copy engine reads 16-byte pieces), experts < 2^31.
struct GroupedProduct {
  const LaunchContext& gpu;
  std::span<std::byte> workspace;  // at least grouped_gemm_workspace(experts)
  const std::int32_t* offsets;
  std::int64_t rows, experts, n, k;  // rows: as many as a and, in wgrad, b have; the experts may use fewer
  const void* a;
  const void* b;
  const float* accumulate;  // wgrad only; may be nullptr, may be d
  void* d;
};

constexpr int kMaxMultiprocessors = 256;  // descriptors are per multiprocessor, and the planner knows no card

/// Sizes, addresses and strides of every expert (8 arrays), and up to 8 descriptors of 128 bytes a
/// multiprocessor.
constexpr std::size_t grouped_gemm_workspace(std::int64_t experts) {
  return 8 * (static_cast<std::size_t>(experts) * 16 + 256) + (kMaxMultiprocessors * 8 + 8) * 128;
}

/// a[R, k] · b[E, n, k]ᵀ → d[R, n], all bf16.
void run_grouped_gemm_forward(const GroupedProduct& product);
/// a[R, k] · b[E, k, n] → d[R, n], all bf16.
void run_grouped_gemm_dgrad(const GroupedProduct& product);
/// Per expert aᵀ · b of a[R, n], b[R, k], bf16 → d[E, n, k] f32 (+ accumulate). Experts without rows are not
/// written.
void run_grouped_gemm_wgrad(const GroupedProduct& product);

/// The same by our own kernel, which takes up to 1024 experts and needs no workspace.
void run_grouped_tiles_forward(const GroupedProduct& product);
void run_grouped_tiles_dgrad(const GroupedProduct& product);
void run_grouped_tiles_wgrad(const GroupedProduct& product);

}  // namespace farskip::cuda
