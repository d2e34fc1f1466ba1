// SPDX-License-Identifier: Apache-2.0
#pragma once
// How sums of grouped_tiles.cuh leave the registers. bf16 straight from there, since where an expert's rows
// end only a row is too much. f32, twice the bytes, by boxes in shared memory that the copy engine takes from
// there while the next tile is multiplied.

#include <cuda.h>
#include <cuda_bf16.h>

#include "backend/cuda/experts/grouped_tiles_schedule.cuh"
#include "backend/cuda/hopper.cuh"

namespace farskip::cuda::tiles {

constexpr int kSums = 64 * kTileN / 128;  // of a thread: a warp group has 64 rows of a tile

/// Words w[j] of four threads beside each other become columns: thread q gets word q of thread j in w[j].
__device__ inline void transpose_quad(std::uint32_t (&w)[4], int q) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const std::uint32_t got = __shfl_xor_sync(0xffffffff, q & 1 ? w[i] : w[i + 1], 1);
    if (q & 1)
      w[i] = got;
    else
      w[i + 1] = got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const std::uint32_t got = __shfl_xor_sync(0xffffffff, q & 2 ? w[i] : w[i + 2], 2);
    if (q & 2)
      w[i] = got;
    else
      w[i + 2] = got;
  }
}

__device__ inline std::uint32_t pack(float low, float high) {
  const __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&both);
}

/// Sums of a thread: element c + 2 r + 4 j is row 8 r, column 8 j + c of the thread's corner (wgmma's
/// layout). Columns are stored 8 at a time, 64 bytes of a row by four threads. n is a multiple of 8.
__device__ __forceinline__ void store_bf16(const Params& p, const Tile& tile, const float (&sums)[kSums],
                                           int row, int lane) {
  auto* d = static_cast<__nv_bfloat16*>(p.d);
  const int q = lane % 4;
#pragma unroll
  for (int group = 0; group < kTileN / 32; ++group) {
    const int column = tile.column_tile * kTileN + group * 32 + q * 8;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      std::uint32_t w[4];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        w[j] = pack(sums[4 * (4 * group + j) + 2 * r], sums[4 * (4 * group + j) + 2 * r + 1]);
      transpose_quad(w, q);
      const int at = row + 8 * r;
      if (tile.store && at < tile.rows && column < p.n)
        *reinterpret_cast<uint4*>(d + std::int64_t(tile.first_row + at) * p.n + column) =
            uint4{w[0], w[1], w[2], w[3]};
    }
  }
}

constexpr int kStagedRows = 8, kStagedColumns = 32, kStagedBoxes = 3;
constexpr int kStagedBytes = kStagedRows * kStagedColumns * 4;

/// Of one warp, in turns.
struct alignas(1024) StagedBoxes {
  float sums[kStagedBoxes][kStagedRows][kStagedColumns];
};

/// Sums of a warp, whose first row is `row`, to dw, or added to it. `offset`: of the warp's next box.
///
/// The copy engine finds the 16 bytes of place c of a line of 128 in place c ^ (line % 8). So the four
/// threads of a line write 8 bytes each into two places beside each other, and threads of odd lines take
/// columns j ^ 2 where those of even lines take j: then no two of 16 threads, which write at once, meet in a
/// bank.
__device__ __forceinline__ void store_f32(const CUtensorMap& map, const Params& p, const Tile& tile,
                                          const float (&sums)[kSums], int row, int lane, StagedBoxes& boxes,
                                          int& offset) {
  if (!tile.store || row >= p.m) return;
  const int line = lane / 4, q = lane % 4;
  const bool odd = line % 2 != 0;
  const std::uint32_t first = hopper::shared_address(&boxes);
  const std::uint32_t at =
      first + std::uint32_t(line * 128 + (((q / 2) ^ line) * 16 ^ (odd ? 64 : 0)) + q % 2 * 8);
#pragma unroll
  for (int box = 0; box < kTileN / kStagedColumns; ++box) {
    const int column = tile.column_tile * kTileN + box * kStagedColumns;
    if (column >= p.n) break;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      hopper::wait_for_reads_of_stores<kStagedBoxes - 1>();  // lane 0's
      __syncwarp();
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int even_sum = 4 * (4 * box + j) + 2 * r, odd_sum = 4 * (4 * box + (j ^ 2)) + 2 * r;
        hopper::store_pair((at + std::uint32_t(offset)) ^ std::uint32_t(j * 32),
                           odd ? sums[odd_sum] : sums[even_sum],
                           odd ? sums[odd_sum + 1] : sums[even_sum + 1]);
      }
      hopper::publish_stores();
      __syncwarp();
      if (lane == 0) {
        if (p.add)
          hopper::store_box<true>(map, column, row + r * kStagedRows, tile.expert,
                                  first + std::uint32_t(offset));
        else
          hopper::store_box<false>(map, column, row + r * kStagedRows, tile.expert,
                                   first + std::uint32_t(offset));
        hopper::commit_stores();
      }
      offset = offset + kStagedBytes == int(sizeof(StagedBoxes::sums)) ? 0 : offset + kStagedBytes;
    }
  }
}

}  // namespace farskip::cuda::tiles
