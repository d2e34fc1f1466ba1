// SPDX-License-Identifier: Apache-2.0
#pragma once
// Products of one warp on tensor cores, and copies to shared memory that a thread does not wait for. PTX ISA
// 9.0, sections "mma.m16n8k16", "ldmatrix" and "cp.async"; they hold pictures of which lane has what.

#include "backend/cuda/hopper.cuh"
#include "backend/cuda/launch.cuh"

namespace farskip::cuda::mma {

/// Four 8 x 8 matrices of 16-bit elements; lanes 8i to 8i + 7 give the addresses of the rows of matrix i.
__device__ __forceinline__ void load_matrices(std::uint32_t (&r)[4], const bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(hopper::shared_address(row))
               : "memory");
}
/// The same, each transposed.
__device__ __forceinline__ void load_transposed(std::uint32_t (&r)[4], const bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(hopper::shared_address(row))
               : "memory");
}

/// The left operand: 16 rows and 16 of the depth, from (0, 0) of a row-major matrix on.
__device__ __forceinline__ void load_left(std::uint32_t (&a)[4], const bf16* matrix, int ld) {
  const int lane = int(threadIdx.x) % 32;
  load_matrices(a, matrix + lane % 16 * ld + lane / 16 * 8);
}
/// The right operand of 16 columns and 16 of the depth, where memory has a row a column: b[0] and b[1] are of
/// the first eight columns.
__device__ __forceinline__ void load_right(std::uint32_t (&b)[4], const bf16* matrix, int ld) {
  const int lane = int(threadIdx.x) % 32;
  load_matrices(b, matrix + (lane / 16 * 8 + lane % 8) * ld + lane / 8 % 2 * 8);
}
/// Of 8 columns and 32 of the depth: b[0] and b[1] are of its first half.
__device__ __forceinline__ void load_deep_right(std::uint32_t (&b)[4], const bf16* matrix, int ld) {
  const int lane = int(threadIdx.x) % 32;
  load_matrices(b, matrix + lane % 8 * ld + lane / 8 * 8);
}
/// As load_right, where memory has a row for each of the depth.
__device__ __forceinline__ void load_right_by_depth(std::uint32_t (&b)[4], const bf16* matrix, int ld) {
  const int lane = int(threadIdx.x) % 32;
  load_transposed(b, matrix + (lane / 8 % 2 * 8 + lane % 8) * ld + lane / 16 * 8);
}

/// sums += a · b of 16 x 16 and 16 x 8. sums[0], sums[1]: row lane / 4, columns lane % 4 * 2 and the next;
/// sums[2], sums[3]: eight rows below.
__device__ __forceinline__ void multiply(float (&sums)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                         std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Starts to copy 16 bytes, or (wanted false) to write 16 zeros.
__device__ __forceinline__ void start_copy(bf16* to, const bf16* from, bool wanted) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(hopper::shared_address(to)), "l"(from),
               "r"(wanted ? 16 : 0)
               : "memory");
}
/// Until the copies that this thread has started are done.
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

}  // namespace farskip::cuda::mma
