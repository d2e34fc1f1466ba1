#include "backend/cuda/grouped_gemm.cuh"

namespace farskip::cuda {

void run_grouped_gemm_forward(const GroupedProduct& product) {
  grouped::run_forward<grouped::Large>(product);
}

}  // namespace farskip::cuda
