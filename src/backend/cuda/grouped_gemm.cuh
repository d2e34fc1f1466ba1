#pragma once
// The one CUTLASS kernel behind grouped_gemm.h: pointer-array TMA loads, warp-specialised, persistent.

#include <cutlass/cutlass.h>
#include <cutlass/gemm/device/gemm_universal_adapter.h>

#include <cute/tensor.hpp>
#include <cutlass/epilogue/collective/collective_builder.hpp>
#include <cutlass/gemm/collective/collective_builder.hpp>
#include <cutlass/gemm/group_array_problem_shape.hpp>
#include <cutlass/gemm/kernel/gemm_universal.hpp>

#include "backend/cuda/check.h"
#include "backend/cuda/grouped_gemm.h"

namespace farskip::cuda::grouped {

using cute::_1;
using cute::_128;
using cute::_2;
using cute::_256;
using cute::_64;
using RowMajor = cutlass::layout::RowMajor;
using ColumnMajor = cutlass::layout::ColumnMajor;
using ProblemShape = cutlass::gemm::GroupProblemShape<cute::Shape<int, int, int>>;

/// Tile of the output, clusters that share loads, and how the two consumer warp groups split the work: both
/// on one tile (the larger tile reads less), or in turns, so that one stores while the other multiplies.
template <class Tile, class Cluster, bool kCooperative>
struct Schedule {
  using TileShape = Tile;
  using ClusterShape = Cluster;
  using Mainloop =
      cute::conditional_t<kCooperative, cutlass::gemm::KernelPtrArrayTmaWarpSpecializedCooperative,
                          cutlass::gemm::KernelPtrArrayTmaWarpSpecializedPingpong>;
  using Epilogue = cute::conditional_t<kCooperative, cutlass::epilogue::PtrArrayTmaWarpSpecializedCooperative,
                                       cutlass::epilogue::PtrArrayTmaWarpSpecializedPingpong>;
};
/// Candidates that tests/backend/cuda/gemm_bench.cu compares.
using Large = Schedule<cute::Shape<_128, _256, _64>, cute::Shape<_2, _1, _1>, true>;
using LargeAlone = Schedule<cute::Shape<_128, _256, _64>, cute::Shape<_1, _1, _1>, true>;
using Turns = Schedule<cute::Shape<_128, _128, _64>, cute::Shape<_2, _1, _1>, false>;

/// Source: C is read (beta 1) where the caller has something to add.
template <class Schedule, class LayoutA, class LayoutB, class Element, bool kSource>
struct Kernel {
  using Bf16 = cutlass::bfloat16_t;
  using TileShape = typename Schedule::TileShape;
  using ClusterShape = typename Schedule::ClusterShape;
  using ElementC = cute::conditional_t<kSource, Element, void>;
  static constexpr int kAlign = 8, kAlignOut = 16 / int(sizeof(Element));
  using Epilogue = typename cutlass::epilogue::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, TileShape, ClusterShape,
      cutlass::epilogue::collective::EpilogueTileAuto, float, float, ElementC, RowMajor*, kAlignOut, Element,
      RowMajor*, kAlignOut, typename Schedule::Epilogue,
      cutlass::epilogue::fusion::LinearCombination<Element, float, ElementC, float>>::CollectiveOp;
  using Mainloop = typename cutlass::gemm::collective::CollectiveBuilder<
      cutlass::arch::Sm90, cutlass::arch::OpClassTensorOp, Bf16, LayoutA*, kAlign, Bf16, LayoutB*, kAlign,
      float, TileShape, ClusterShape,
      cutlass::gemm::collective::StageCountAutoCarveout<int(sizeof(typename Epilogue::SharedStorage))>,
      typename Schedule::Mainloop>::CollectiveOp;
  using Gemm = cutlass::gemm::device::GemmUniversalAdapter<
      cutlass::gemm::kernel::GemmUniversal<ProblemShape, Mainloop, Epilogue>>;
};

/// Where an operand of expert e starts: base + offsets[e] * per_row + e * per_expert bytes.
struct Operand {
  const std::byte* base;
  std::int64_t per_row, per_expert, leading;  // leading: elements from one row (or column) to the next

  __device__ std::byte* at(std::int64_t row, std::int64_t expert) const {
    return const_cast<std::byte*>(base) + row * per_row + expert * per_expert;
  }
};

/// What a launch multiplies; the dimension that is the rows of an expert is kRows.
struct Problem {
  static constexpr std::int64_t kRows = -1;
  std::int64_t m, n, k;
  Operand a, b, c, d;
};

/// Arrays in the workspace, one element per expert.
template <class Gemm>
struct Arrays {
  using Kernel = typename Gemm::GemmKernel;
  using Shape = typename ProblemShape::UnderlyingProblemShape;
  Shape* shapes;
  const typename Gemm::ElementA** a;
  const typename Gemm::ElementB** b;
  const typename Gemm::ElementD** c;
  typename Gemm::ElementD** d;
  typename Kernel::InternalStrideA* stride_a;
  typename Kernel::InternalStrideB* stride_b;
  typename Kernel::InternalStrideD* stride_d;

  /// Lays them out from `at` on; returns what follows. With nullptr: the bytes needed.
  std::byte* place(std::byte* at, std::int64_t experts) {
    const auto take = [&](auto*& array) {
      array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(at);
      const std::size_t bytes = static_cast<std::size_t>(experts) * sizeof(*array);
      at += (bytes + 255) / 256 * 256;
    };
    take(shapes);
    take(a);
    take(b);
    take(c);
    take(d);
    take(stride_a);
    take(stride_b);
    take(stride_d);
    return at;
  }
};

template <class Stride>
__device__ Stride with_leading(std::int64_t leading) {
  Stride stride{};
  if constexpr (cute::is_static_v<cute::tuple_element_t<0, Stride>>) {
    cute::get<1>(stride) = leading;
  } else {
    cute::get<0>(stride) = leading;
  }
  return stride;
}

/// Sizes, addresses and strides of every expert's product. An expert without rows gets no tile at all, also
/// where its rows are the depth: CUTLASS would store accumulators that nothing has set.
template <class Gemm>
__global__ void fill_groups(Problem p, const std::int32_t* offsets, int experts, Arrays<Gemm> out) {
  using Kernel = typename Gemm::GemmKernel;
  for (int e = int(threadIdx.x); e < experts; e += int(blockDim.x)) {
    const std::int64_t row = offsets[e];
    const int rows = offsets[e + 1] - offsets[e];
    const int m = p.m == Problem::kRows ? rows : int(p.m), k = p.k == Problem::kRows ? rows : int(p.k);
    out.shapes[e] = cute::make_shape(rows == 0 ? 0 : m, int(p.n), k);
    out.a[e] = reinterpret_cast<const typename Gemm::ElementA*>(p.a.at(row, e));
    out.b[e] = reinterpret_cast<const typename Gemm::ElementB*>(p.b.at(row, e));
    out.c[e] = reinterpret_cast<const typename Gemm::ElementD*>(p.c.at(row, e));
    out.d[e] = reinterpret_cast<typename Gemm::ElementD*>(p.d.at(row, e));
    out.stride_a[e] = with_leading<typename Kernel::InternalStrideA>(p.a.leading);
    out.stride_b[e] = with_leading<typename Kernel::InternalStrideB>(p.b.leading);
    out.stride_d[e] = with_leading<typename Kernel::InternalStrideD>(p.d.leading);
  }
}

/// Arguments whose workspace sizes do not depend on the problem.
template <class Gemm>
typename Gemm::Arguments make_arguments(const Arrays<Gemm>& arrays, std::int64_t experts, int multiprocessors,
                                        bool source) {
  using Kernel = typename Gemm::GemmKernel;
  typename Gemm::Arguments arguments{};
  arguments.mode = cutlass::gemm::GemmUniversalMode::kGrouped;
  arguments.problem_shape = {int(experts), arrays.shapes, nullptr};
  arguments.mainloop = {arrays.a, arrays.stride_a, arrays.b, arrays.stride_b};
  arguments.epilogue.thread.alpha = 1.0F;
  arguments.epilogue.thread.beta = source ? 1.0F : 0.0F;
  if constexpr (!cute::is_void_v<typename Kernel::ElementC>) {
    arguments.epilogue.ptr_C = arrays.c;
    arguments.epilogue.dC = arrays.stride_d;
  }
  arguments.epilogue.ptr_D = arrays.d;
  arguments.epilogue.dD = arrays.stride_d;
  arguments.hw_info.sm_count = multiprocessors;
  // Tiles of the same rows beside each other: one expert's w fits the L2 cache, the rows of a large expert do
  // not, and would be read from memory once per tile column the other way around.
  arguments.scheduler.raster_order = Kernel::TileScheduler::RasterOrderOptions::AlongN;
  return arguments;
}

template <class Gemm>
std::size_t workspace_bytes(std::int64_t experts) {
  Arrays<Gemm> arrays{};
  const auto end = reinterpret_cast<std::size_t>(arrays.place(nullptr, experts));
  return end + Gemm::get_workspace_size(make_arguments(arrays, experts, kMaxMultiprocessors, false));
}

template <class Gemm>
void run(const GroupedProduct& product, const Problem& problem) {
  FARSKIP_CHECK(product.gpu.num_multiprocessors <= kMaxMultiprocessors, "{} multiprocessors",
                product.gpu.num_multiprocessors);
  FARSKIP_CHECK(product.workspace.size() >= workspace_bytes<Gemm>(product.experts), "workspace of {} bytes",
                product.workspace.size());
  for (const void* p : {product.a, product.b, static_cast<const void*>(product.accumulate),
                        static_cast<const void*>(product.d)})
    FARSKIP_CHECK(reinterpret_cast<std::uintptr_t>(p) % 16 == 0, "a matrix at {}", fmt::ptr(p));
  Arrays<Gemm> arrays{};
  std::byte* rest = arrays.place(product.workspace.data(), product.experts);
  fill_groups<Gemm>
      <<<1, 256, 0, product.gpu.stream>>>(problem, product.offsets, int(product.experts), arrays);
  FARSKIP_CUDA_CHECK_LAUNCH();
  Gemm gemm;
  const auto check = [](cutlass::Status status, const char* what) {
    FARSKIP_CHECK(status == cutlass::Status::kSuccess, "grouped product: {}: {}", what,
                  cutlass::cutlassGetStatusString(status));
  };
  check(gemm.initialize(make_arguments(arrays, product.experts, product.gpu.num_multiprocessors,
                                       product.accumulate != nullptr),
                        rest, product.gpu.stream),
        "initialize");
  check(gemm.run(product.gpu.stream), "run");
}

constexpr std::int64_t kBf16 = 2, kF32 = 4;

inline Operand operand(const void* base, std::int64_t per_row, std::int64_t per_expert,
                       std::int64_t leading) {
  return {static_cast<const std::byte*>(base), per_row, per_expert, leading};
}

template <class Schedule>
using ForwardGemm = typename Kernel<Schedule, RowMajor, ColumnMajor, cutlass::bfloat16_t, false>::Gemm;
template <class Schedule>
using DgradGemm = typename Kernel<Schedule, RowMajor, RowMajor, cutlass::bfloat16_t, false>::Gemm;
template <class Schedule>
using WgradGemm = typename Kernel<Schedule, ColumnMajor, RowMajor, float, true>::Gemm;

template <class Schedule>
void run_forward(const GroupedProduct& p) {
  const Operand d = operand(p.d, p.n * kBf16, 0, p.n);
  run<ForwardGemm<Schedule>>(p, {Problem::kRows, p.n, p.k, operand(p.a, p.k * kBf16, 0, p.k),
                                 operand(p.b, 0, p.n * p.k * kBf16, p.k), d, d});
}

template <class Schedule>
void run_dgrad(const GroupedProduct& p) {
  const Operand d = operand(p.d, p.n * kBf16, 0, p.n);
  run<DgradGemm<Schedule>>(p, {Problem::kRows, p.n, p.k, operand(p.a, p.k * kBf16, 0, p.k),
                               operand(p.b, 0, p.n * p.k * kBf16, p.n), d, d});
}

template <class Schedule>
void run_wgrad(const GroupedProduct& p) {
  const void* source = p.accumulate != nullptr ? p.accumulate : p.d;  // a valid address even where unread
  run<WgradGemm<Schedule>>(
      p, {p.n, p.k, Problem::kRows, operand(p.a, p.n * kBf16, 0, p.n), operand(p.b, p.k * kBf16, 0, p.k),
          operand(source, 0, p.n * p.k * kF32, p.k), operand(p.d, 0, p.n * p.k * kF32, p.k)});
}

}  // namespace farskip::cuda::grouped
