#include "backend/cuda/grouped_gemm.cuh"

namespace farskip::cuda {

void run_grouped_gemm_dgrad(const GroupedProduct& product) {
  grouped::run_dgrad<grouped::Large>(product);
}

}  // namespace farskip::cuda
