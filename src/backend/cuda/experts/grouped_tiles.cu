// SPDX-License-Identifier: Apache-2.0
#include <array>
#include <type_traits>

#include "backend/cuda/check.h"
#include "backend/cuda/experts/grouped_tiles.cuh"
#include "backend/cuda/experts/grouped_tiles.h"

namespace farskip::cuda {
namespace {

using tiles::Direction;

/// The driver's function that describes a matrix to the copy engine; found at run time, since the build links
/// no driver.
decltype(&cuTensorMapEncodeTiled) find_encoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  FARSKIP_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                      cudaEnableDefault, &found));
  FARSKIP_CHECK(found == cudaDriverEntryPointSuccess, "the driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
}

/// What the copy engine moves at once: columns of 128 bytes in all, by rows.
struct Box {
  std::uint32_t columns, rows;
};

/// A contiguous array, innermost dim first, moved in boxes; zeros are read outside, and nothing is written
/// there.
template <class T>
CUtensorMap describe(const T* data, std::array<std::int64_t, 3> sizes, std::uint32_t rank, Box box) {
  static const auto encode = find_encoder();
  FARSKIP_CHECK(reinterpret_cast<std::uintptr_t>(data) % 16 == 0, "a matrix at {}", fmt::ptr(data));
  std::array<std::uint64_t, 3> dims{}, strides{};
  std::uint64_t bytes = sizeof(T);
  for (std::size_t i = 0; i < rank; ++i) {
    dims[i] = static_cast<std::uint64_t>(sizes[i]);
    strides[i] = bytes *= dims[i];
  }
  const std::array<std::uint32_t, 3> boxes{box.columns, box.rows, 1}, steps{1, 1, 1};
  constexpr auto kType =
      std::is_same_v<T, float> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  CUtensorMap map;
  const CUresult status =
      encode(&map, kType, rank, const_cast<T*>(data), dims.data(), strides.data(), boxes.data(), steps.data(),
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  FARSKIP_CHECK(status == CUDA_SUCCESS, "cuTensorMapEncodeTiled: {} for {} x {} x {}",
                static_cast<int>(status), sizes[0], sizes[1], sizes[2]);
  return map;
}

/// An operand: boxes of 64 columns.
CUtensorMap describe_operand(const void* data, std::array<std::int64_t, 3> sizes, std::uint32_t rank,
                             std::uint32_t rows) {
  return describe(static_cast<const __nv_bfloat16*>(data), sizes, rank, {64, rows});
}

template <Direction kDirection>
void launch(const GroupedProduct& p, const tiles::Maps& maps, const tiles::Params& params) {
  FARSKIP_CHECK(fits_grouped_tiles(p.rows, p.experts, p.n, p.k), "{} rows of {} experts, n {}, k {}", p.rows,
                p.experts, p.n, p.k);
  FARSKIP_CHECK(reinterpret_cast<std::uintptr_t>(p.d) % 16 == 0, "a matrix at {}", fmt::ptr(p.d));
  const auto kernel = tiles::grouped_tiles<kDirection>;
  constexpr std::size_t kShared = sizeof(tiles::SharedStorage<kDirection>) + 1024;
  static_assert(kShared <= 227 << 10);
  FARSKIP_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kShared)));
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = 2;
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(p.gpu.num_multiprocessors / 2 * 2));
  config.blockDim = dim3(tiles::kThreads);
  config.dynamicSmemBytes = kShared;
  config.stream = p.gpu.stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  FARSKIP_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, maps, params));
}

}  // namespace

void run_grouped_tiles_forward(const GroupedProduct& p) {
  launch<Direction::forward>(p,
                             {.a = describe_operand(p.a, {p.k, p.rows, 1}, 2, tiles::kTileM),
                              .b = describe_operand(p.b, {p.k, p.n, p.experts}, 3, tiles::kTileN / 2),
                              .d = {}},
                             {p.offsets, int(p.experts), 0, int(p.n), int(p.k), p.d, false});
}

void run_grouped_tiles_dgrad(const GroupedProduct& p) {
  launch<Direction::dgrad>(p,
                           {.a = describe_operand(p.a, {p.k, p.rows, 1}, 2, tiles::kTileM),
                            .b = describe_operand(p.b, {p.n, p.k, p.experts}, 3, 64),
                            .d = {}},
                           {p.offsets, int(p.experts), 0, int(p.n), int(p.k), p.d, false});
}

void run_grouped_tiles_wgrad(const GroupedProduct& p) {
  launch<Direction::wgrad>(p,
                           {.a = describe_operand(p.a, {p.n, p.rows, 1}, 2, tiles::kTileK),
                            .b = describe_operand(p.b, {p.k, p.rows, 1}, 2, tiles::kTileK),
                            .d = describe(static_cast<const float*>(p.d), {p.k, p.n, p.experts}, 3,
                                          {tiles::kStagedColumns, tiles::kStagedRows})},
                           {p.offsets, int(p.experts), int(p.n), int(p.k), 0, nullptr, p.add});
}

}  // namespace farskip::cuda
