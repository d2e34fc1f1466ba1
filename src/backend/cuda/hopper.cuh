// SPDX-License-Identifier: Apache-2.0
#pragma once
// Instructions of sm_90a that CUDA C++ has no name for: barriers in shared memory, loads and stores by the
// copy engine, products by warp groups, registers by role. PTX ISA 9.0, sections "mbarrier",
// "cp.async.bulk.tensor", "cp.reduce.async.bulk.tensor", "wgmma".

#include <cuda.h>

#include <cstdint>

namespace farskip::cuda::hopper {

__device__ __forceinline__ std::uint32_t shared_address(const void* p) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
}

// ---- clusters of blocks --------------------------------------------------------------------------

__device__ __forceinline__ int rank_in_cluster() {
  std::uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return int(rank);
}

/// All threads of all blocks of the cluster.
__device__ __forceinline__ void synchronize_cluster() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

// ---- barriers ------------------------------------------------------------------------------------

/// Counts arrivals, and bytes that the copy engine still has to bring; at zero its phase ends and the next
/// begins.
struct Barrier {
  std::uint64_t state;

  __device__ __forceinline__ void init(std::uint32_t arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&state)), "r"(arrivals)
                 : "memory");
  }
  /// Until the phase of this parity has ended; that before the first counts as ended, and has parity 1.
  __device__ __forceinline__ void wait(std::uint32_t parity) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "again:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra leave;\nbra again;\nleave:\n}" ::"r"(shared_address(&state)),
        "r"(parity)
        : "memory");
  }
  /// Arrives, and `bytes` more are to come.
  __device__ __forceinline__ void arrive_expecting(std::uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&state)),
                 "r"(bytes)
                 : "memory");
  }
  /// Arrives at the barrier in the same place of another block of the cluster, where `wanted`: a predicate
  /// and no branch, so that warps stay together.
  __device__ __forceinline__ void arrive_at(std::uint32_t rank, bool wanted) {
    asm volatile(
        "{\n.reg .pred wanted;\n.reg .b32 remote;\nsetp.ne.b32 wanted, %2, 0;\n"
        "@wanted mapa.shared::cluster.u32 remote, %0, %1;\n"
        "@wanted mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(shared_address(&state)),
        "r"(rank), "r"(int(wanted))
        : "memory");
  }
};

/// Barriers set up before are seen by the copy engine and by other blocks of the cluster.
__device__ __forceinline__ void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

/// What the thread has stored in shared memory is seen by warp groups' products and by the copy engine.
__device__ __forceinline__ void publish_stores() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// Barrier kId of the block (0 is __syncthreads') for kCount of its threads.
template <int kId, int kCount>
__device__ __forceinline__ void synchronize_some() {
  asm volatile("bar.sync %0, %1;" ::"n"(kId), "n"(kCount) : "memory");
}

// ---- loads by the copy engine --------------------------------------------------------------------

/// Loads the box at (x, y), counted in elements, to shared memory; `barrier` counts its bytes.
__device__ __forceinline__ void load_box(const CUtensorMap& map, int x, int y, void* to, Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(x), "r"(y)
      : "memory");
}

__device__ __forceinline__ void load_box(const CUtensorMap& map, int x, int y, int z, void* to,
                                         Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5}], "
      "[%2];" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(x), "r"(y), "r"(z)
      : "memory");
}

/// The same for all blocks of the cluster that `blocks` has a bit for, in the same place of each, counted by
/// the barrier in the same place of each.
__device__ __forceinline__ void load_box_for(std::uint16_t blocks, const CUtensorMap& map, int x, int y,
                                             void* to, Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%4, %5}], [%2], %3;" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "h"(blocks), "r"(x), "r"(y)
      : "memory");
}

__device__ __forceinline__ void load_box_for(std::uint16_t blocks, const CUtensorMap& map, int x, int y,
                                             int z, void* to, Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%4, %5, %6}], [%2], %3;" ::"r"(shared_address(to)),
      "l"(&map), "r"(shared_address(&barrier)), "h"(blocks), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// ---- stores by the copy engine -------------------------------------------------------------------

__device__ __forceinline__ void store_pair(std::uint32_t shared, float x, float y) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(shared), "f"(x), "f"(y) : "memory");
}

/// Stores the box in shared memory at (x, y, z), or adds it to what is there, each element at once; what lies
/// outside of the array is left out. Belongs to the thread's next batch. Adding may take subnormal numbers
/// for zero (PTX ISA, "cp.reduce.async.bulk").
template <bool kAdd>
__device__ __forceinline__ void store_box(const CUtensorMap& map, int x, int y, int z, std::uint32_t shared) {
  if constexpr (kAdd)
    asm volatile(
        "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::
            "l"(&map),
        "r"(shared), "r"(x), "r"(y), "r"(z)
        : "memory");
  else
    asm volatile(
        "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
        "r"(shared), "r"(x), "r"(y), "r"(z)
        : "memory");
}
__device__ __forceinline__ void commit_stores() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/// Until the shared memory of all but the thread's last kPending batches may be written again.
template <int kPending>
__device__ __forceinline__ void wait_for_reads_of_stores() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}
/// Until all of the thread's batches are in global memory.
__device__ __forceinline__ void wait_for_stores() {
  asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
}

// ---- products by warp groups ---------------------------------------------------------------------

/// A bf16 matrix in shared memory, in boxes of lines of 128 bytes as the copy engine swizzles them. Plain: a
/// line is one row or column with 64 of the depth, and the next 8 of them lie 1024 bytes on. Transposed: a
/// line is one of the depth with 64 rows or columns, 8 more of the depth lie 1024 bytes on, and the next 64
/// rows or columns `next_64` bytes on.
template <bool kTransposed>
__device__ __forceinline__ std::uint64_t describe_matrix(const void* p, int next_64) {
  constexpr std::uint64_t kSwizzle128 = std::uint64_t{1} << 62, kNext8 = std::uint64_t{1024 / 16} << 32;
  const std::uint64_t leading = kTransposed ? std::uint64_t(next_64 / 16) : 1;  // plain: not read
  return kSwizzle128 | kNext8 | leading << 16 | std::uint64_t((shared_address(p) & 0x3ffff) >> 4);
}

/// The descriptor of what lies 16 of the depth further on.
template <bool kTransposed>
__device__ __forceinline__ std::uint64_t advance_16(std::uint64_t matrix, int steps) {
  constexpr int kBytes = kTransposed ? 16 * 128 : 16 * 2;
  return matrix + std::uint64_t(steps * (kBytes / 16));
}

/// Before the first product of a batch: what the threads did with the sums and with shared memory is done.
__device__ __forceinline__ void begin_products() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Until at most kPending batches are under way.
template <int kPending>
__device__ __forceinline__ void wait_for_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

/// The compiler moves no use of the sums across.
template <int kCount>
__device__ __forceinline__ void fence_sums(float (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// Operands of asm must be written out.
#define FARSKIP_SUMS_4(x, i) "+f"(x[i]), "+f"(x[i + 1]), "+f"(x[i + 2]), "+f"(x[i + 3])
#define FARSKIP_SUMS_16(x, i) \
  FARSKIP_SUMS_4(x, i), FARSKIP_SUMS_4(x, i + 4), FARSKIP_SUMS_4(x, i + 8), FARSKIP_SUMS_4(x, i + 12)
#define FARSKIP_SUMS_64(x, i) \
  FARSKIP_SUMS_16(x, i), FARSKIP_SUMS_16(x, i + 16), FARSKIP_SUMS_16(x, i + 32), FARSKIP_SUMS_16(x, i + 48)

/// sums += a · bᵀ of 64 x 16 and 256 x 16 (add false: sums = a · bᵀ); kTransposed: see describe_matrix.
template <bool kTransposedA, bool kTransposedB>
__device__ __forceinline__ void multiply(float (&sums)[128], std::uint64_t a, std::uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, add, 1, 1, %131, %132;\n}"
      : FARSKIP_SUMS_64(sums, 0), FARSKIP_SUMS_64(sums, 64)
      : "l"(a), "l"(b), "r"(int(add)), "n"(int(kTransposedA)), "n"(int(kTransposedB)));
}

template <bool kTransposedA, bool kTransposedB>
__device__ __forceinline__ void multiply(float (&sums)[64], std::uint64_t a, std::uint64_t b, bool add) {
  asm volatile(
      "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
      "%64, %65, add, 1, 1, %67, %68;\n}"
      : FARSKIP_SUMS_64(sums, 0)
      : "l"(a), "l"(b), "r"(int(add)), "n"(int(kTransposedA)), "n"(int(kTransposedB)));
}

#undef FARSKIP_SUMS_64
#undef FARSKIP_SUMS_16
#undef FARSKIP_SUMS_4

/// Registers of each thread of a warp group from here on.
template <int kCount>
__device__ __forceinline__ void keep_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

}  // namespace farskip::cuda::hopper
