// SPDX-License-Identifier: Apache-2.0
#pragma once
// The one matrix product everything dense is built on. Two implementations of this header, chosen by
// CMake: src/backend/blas/onednn.cpp and openblas.cpp.

#include <cstdint>

namespace farskip::cpu {

/// C = alpha * op(A) * op(B) + beta * C, row-major, op(A) [m, k], op(B) [k, n], C [m, n]; beta == 0 does
/// not read C. Runs on the calling thread only, so that results do not depend on the thread count.
void sgemm_single_thread(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
                         float alpha, const float* a, std::int64_t lda, const float* b, std::int64_t ldb,
                         float beta, float* c, std::int64_t ldc);

/// "oneDNN 2.6.3", "OpenBLAS 0.3.21 …": for `doctor` and run records.
const char* blas_name();

}  // namespace farskip::cpu
