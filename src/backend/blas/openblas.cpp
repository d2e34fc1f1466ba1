// SPDX-License-Identifier: Apache-2.0
#include <cblas.h>

#include "farskip/backend/cpu/blas.h"

namespace farskip::cpu {

void sgemm_single_thread(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
                         float alpha, const float* a, std::int64_t lda, const float* b, std::int64_t ldb,
                         float beta, float* c, std::int64_t ldc) {
  if (m == 0 || n == 0) return;
  // OpenBLAS keeps its own threads; ours are the parallel tiles around this call.
  static const bool once = (openblas_set_num_threads(1), true);
  static_cast<void>(once);
  cblas_sgemm(CblasRowMajor, transpose_a ? CblasTrans : CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans,
              static_cast<blasint>(m), static_cast<blasint>(n), static_cast<blasint>(k), alpha, a,
              static_cast<blasint>(lda), b, static_cast<blasint>(ldb), beta, c, static_cast<blasint>(ldc));
}

const char* blas_name() {
  return openblas_get_config();
}

}  // namespace farskip::cpu
