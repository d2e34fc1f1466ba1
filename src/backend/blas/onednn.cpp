// SPDX-License-Identifier: Apache-2.0
#include <dnnl.h>

#include <new>

#include "farskip/backend/cpu/blas.h"
#include "farskip/base/error.h"

namespace farskip::cpu {

void sgemm_single_thread(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
                         float alpha, const float* a, std::int64_t lda, const float* b, std::int64_t ldb,
                         float beta, float* c, std::int64_t ldc) {
  if (m == 0 || n == 0) return;
  const dnnl_status_t status = dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, alpha, a,
                                          lda, b, ldb, beta, c, ldc);
  if (status == dnnl_out_of_memory) throw std::bad_alloc();
  FARSKIP_CHECK(status == dnnl_success, "dnnl_sgemm m={} n={} k={}: status {}", m, n, k,
                static_cast<int>(status));
}

const char* blas_name() {
  static const std::string name = [] {
    const dnnl_version_t* v = dnnl_version();
    return fmt::format("oneDNN {}.{}.{}", v->major, v->minor, v->patch);
  }();
  return name.c_str();
}

}  // namespace farskip::cpu
