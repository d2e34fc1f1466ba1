#include "backend/cuda/grouped_gemm.cuh"

namespace farskip::cuda {

void run_grouped_gemm_wgrad(const GroupedProduct& product) {
  grouped::run_wgrad<grouped::Large>(product);
}

}  // namespace farskip::cuda
