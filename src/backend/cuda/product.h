// SPDX-License-Identifier: Apache-2.0
#pragma once
// Dense products by cuBLASLt.

#include <cstddef>
#include <cstdint>
#include <span>

#include "backend/cuda/context.h"
#include "farskip/tensor/dtype.h"

namespace farskip::cuda {

/// c = alpha · op(a) · op(b) (+ beta · accumulate), all row-major: op(a) is [m, k], op(b) [k, n]. ld:
/// elements from one stored row to the next. a and b are both f32 or both bf16; c is f32, or bf16 where a is.
/// Sums are in f32, never TF32.
struct Product {
  bool transpose_a = false, transpose_b = false;
  std::int64_t m = 0, n = 0, k = 0;
  DType in = DType::f32, out = DType::f32;
  const void* a = nullptr;
  std::int64_t lda = 0;
  const void* b = nullptr;
  std::int64_t ldb = 0;
  void* c = nullptr;
  std::int64_t ldc = 0;
  const void* accumulate = nullptr;  // laid out as c, and may be c where that is f32
  float alpha = 1.0F, beta = 1.0F;
  // So many products of equal sizes: elements from a matrix to that of the next one.
  std::int64_t batches = 1, stride_a = 0, stride_b = 0, stride_c = 0;
};

constexpr std::size_t kProductWorkspace = 32 << 20;

/// The algorithm is what cuBLASLt's heuristics give for the problem on this card, without measuring, among
/// those that sum in a fixed order: equal problems have equal bits.
void multiply(const LaunchContext& gpu, const Product& product, std::span<std::byte> workspace);

}  // namespace farskip::cuda
