// SPDX-License-Identifier: Apache-2.0
// ops "grouped_matmul" and "grouped_matmul_wgrad": tensor cores where types and sizes allow, a kernel for few
// rows, a plain one elsewhere. The sizes of the groups stay on the device.
#include <algorithm>

#include "backend/cuda/experts/grouped_tiles.h"
#include "backend/cuda/few_rows.h"
#include "backend/cuda/tiled_product.cuh"
#include "farskip/ops/ops.h"

namespace farskip {
namespace cuda {
namespace {

// ---- rows times w[e], plain ----------------------------------------------------------------------

/// Which rows of which expert a block computes.
struct RowTile {
  int expert = -1;  // -1: none
  std::int64_t row = 0, end = 0;
};

/// Tiles are numbered through the experts; as many as all rows may need are launched.
__device__ RowTile find_row_tile(const std::int32_t* offsets, int experts, std::int64_t tile) {
  for (int e = 0; e < experts; ++e) {
    const std::int64_t begin = offsets[e], end = offsets[e + 1], tiles = (end - begin + kTile - 1) / kTile;
    if (tile < tiles) return {e, begin + tile * kTile, end};
    tile -= tiles;
  }
  return {};
}

template <bool kTransposeW, class T>
__global__ void __launch_bounds__(kTileThreads)
    grouped_rows(const T* x, const T* w, const std::int32_t* offsets, int experts, std::int64_t n,
                 std::int64_t k, T* out) {
  const RowTile tile = find_row_tile(offsets, experts, blockIdx.x);
  if (tile.expert < 0) return;
  const TiledProduct<T, T> product{
      tile.end - tile.row, n, k, x + tile.row * k, w + tile.expert * n * k, nullptr, out + tile.row * n};
  compute_tile<false, kTransposeW>(product, 0, std::int64_t(blockIdx.y) * kTile);
}

template <class T>
void run_rows_plain(const KernelCall& call, bool transpose_w, std::int64_t n, std::int64_t k) {
  const std::int64_t experts = call.in_shape(1)[0], rows = call.in_shape(0).num_rows();
  const dim3 grid(unsigned(ceil_div(rows, kTile) + experts), unsigned(ceil_div(n, kTile)));
  const auto kernel = transpose_w ? grouped_rows<true, T> : grouped_rows<false, T>;
  kernel<<<grid, kTileThreads, 0, call.gpu->stream>>>(call.in<T>(0), call.in<T>(1), call.in<std::int32_t>(2),
                                                      int(experts), n, k, call.out<T>(0));
  FARSKIP_CUDA_CHECK_LAUNCH();
}

// ---- gradient of w[e], plain ---------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kTileThreads)
    grouped_wgrad(const T* dy, const T* x, const std::int32_t* offsets, std::int64_t n, std::int64_t k,
                  const float* accumulate, float* dw) {
  const std::int64_t e = blockIdx.z, begin = offsets[e], first = e * n * k;
  const TiledProduct<T, float> product{n,
                                       k,
                                       offsets[e + 1] - begin,
                                       dy + begin * n,
                                       x + begin * k,
                                       accumulate == nullptr ? nullptr : accumulate + first,
                                       dw + first};
  compute_tile<true, false>(product, std::int64_t(blockIdx.x) * kTile, std::int64_t(blockIdx.y) * kTile);
}

template <class T>
void run_wgrad_plain(const KernelCall& call, std::int64_t n, std::int64_t k) {
  const std::int64_t experts = call.out_shape(0)[0];
  const dim3 grid(unsigned(ceil_div(n, kTile)), unsigned(ceil_div(k, kTile)), unsigned(experts));
  grouped_wgrad<T>
      <<<grid, kTileThreads, 0, call.gpu->stream>>>(call.in<T>(0), call.in<T>(1), call.in<std::int32_t>(2), n,
                                                    k, call.has(3) ? call.in(3) : nullptr, call.out(0));
  FARSKIP_CUDA_CHECK_LAUNCH();
}

/// Gradients of the experts without rows, which the tensor-core kernel leaves alone.
__global__ void clear_empty_experts(const std::int32_t* offsets, std::int64_t elements, float* dw) {
  const std::int64_t e = blockIdx.y;
  if (offsets[e] != offsets[e + 1]) return;
  const std::int64_t stride = std::int64_t(gridDim.x) * blockDim.x;
  for (std::int64_t i = std::int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < elements; i += stride)
    dw[e * elements + i] = 0.0F;
}

/// What the tensor-core kernel adds to, where it adds: a plan usually has accumulate and dw in one place.
void prepare_wgrad(const KernelCall& call, std::int64_t experts, const float* accumulate) {
  const TensorView& dw = call.outputs[0];
  if (accumulate == nullptr) {
    const std::int64_t elements = dw.num_elements() / experts;
    const dim3 grid(unsigned(std::clamp<std::int64_t>(ceil_div(elements, 1 << 14), 1, 256)),
                    unsigned(experts));
    launch(call, clear_empty_experts, grid, kThreads, 0, call.in<std::int32_t>(2), elements, call.out(0));
  } else if (accumulate != call.out(0)) {
    FARSKIP_CUDA_CHECK(
        cudaMemcpyAsync(dw.data, accumulate, dw.num_bytes(), cudaMemcpyDeviceToDevice, call.gpu->stream));
  }
}

// ---- ops -----------------------------------------------------------------------------------------

void run_grouped_matmul(const KernelCall& call) {
  const bool transpose_w = call.get<ops::GroupedMatmul>().transpose_w;
  const Shape& w = call.in_shape(1);
  const std::int64_t n = transpose_w ? w[1] : w[2], k = transpose_w ? w[2] : w[1];
  const DType dtype = call.inputs[0].dtype;
  FARSKIP_CHECK(call.inputs[1].dtype == dtype && call.outputs[0].dtype == dtype, "mixed types");
  const std::int64_t rows = call.in_shape(0).num_rows();
  if (rows == 0 || n == 0) return;
  const FewRowsProduct few{
      call.in<std::int32_t>(2), rows, w[0], n, k, call.inputs[0].data, call.inputs[1].data,
      call.outputs[0].data};
  if (dtype == DType::bf16 && transpose_w && fits_few_rows(few)) return run_few_rows(call, few);
  if (dtype != DType::bf16 || !fits_grouped_tiles(rows, w[0], n, k))
    return dtype == DType::bf16 ? run_rows_plain<bf16>(call, transpose_w, n, k)
                                : run_rows_plain<float>(call, transpose_w, n, k);
  const GroupedProduct product{
      *call.gpu,           call.in<std::int32_t>(2), rows, w[0], n, k, call.inputs[0].data,
      call.inputs[1].data, call.outputs[0].data};
  transpose_w ? run_grouped_tiles_forward(product) : run_grouped_tiles_dgrad(product);
}

void run_grouped_matmul_wgrad(const KernelCall& call) {
  const std::int64_t n = call.in_shape(0).back(), k = call.in_shape(1).back(), experts = call.out_shape(0)[0];
  const std::int64_t rows = call.in_shape(0).num_rows();
  const DType dtype = call.inputs[0].dtype;
  FARSKIP_CHECK(call.inputs[1].dtype == dtype && call.outputs[0].dtype == DType::f32, "mixed types");
  if (call.outputs[0].num_elements() == 0) return;
  if (dtype != DType::bf16 || !fits_grouped_tiles(rows, experts, n, k))
    return dtype == DType::bf16 ? run_wgrad_plain<bf16>(call, n, k) : run_wgrad_plain<float>(call, n, k);
  const float* accumulate = call.has(3) ? call.in(3) : nullptr;
  prepare_wgrad(call, experts, accumulate);
  if (rows == 0) return;
  run_grouped_tiles_wgrad({*call.gpu, call.in<std::int32_t>(2), rows, experts, n, k, call.inputs[0].data,
                           call.inputs[1].data, call.outputs[0].data, accumulate != nullptr});
}

}  // namespace
}  // namespace cuda

void register_cuda_grouped_matmul(KernelTable& table);

void register_cuda_grouped_matmul(KernelTable& table) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    table.add("grouped_matmul", dtype, DeviceKind::cuda, {.run = cuda::run_grouped_matmul});
    table.add("grouped_matmul_wgrad", dtype, DeviceKind::cuda, {.run = cuda::run_grouped_matmul_wgrad});
  }
}

}  // namespace farskip
