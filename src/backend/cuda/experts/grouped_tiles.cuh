// SPDX-License-Identifier: Apache-2.0
#pragma once
// A wgmma kernel of our own for products of experts (grouped_tiles.h). All experts' rows are one matrix and
// all weights one array, so one descriptor serves all, and rows of the next expert at the end of one are
// multiplied too but not stored.
//
// A block of 384 threads: a producer warp that loads tiles by the copy engine, and two warp groups that
// multiply, each 64 rows of a 128 x 256 tile. Blocks work in pairs (a cluster), which share the loads of b;
// who computes which tile is grouped_tiles_schedule.cuh's.

#include <cuda.h>

#include <cstdint>

#include "backend/cuda/experts/grouped_tiles_store.cuh"

namespace farskip::cuda::tiles {

constexpr int kTileK = 64, kStages = 4, kConsumers = 256;
constexpr int kBytesA = kTileM * kTileK * 2, kBytesB = kTileN * kTileK * 2;

struct Barriers {
  hopper::Barrier full[kStages];
  hopper::Barrier empty[kStages];  // two warp groups of both blocks let go of a stage
};

/// Sums on their way out; forward, dgrad: they go straight from registers.
template <Direction kDirection>
struct Staging {};
template <>
struct Staging<Direction::wgrad> {
  StagedBoxes of_warp[kConsumers / 32];
};

template <Direction kDirection>
struct alignas(1024) SharedStorage {
  alignas(1024) std::uint8_t a[kStages][kBytesA];
  alignas(1024) std::uint8_t b[kStages][kBytesB];
  Staging<kDirection> staging;
  Barriers barriers;
  Order order;
};

/// The matrices, as the copy engine knows them.
struct Maps {
  CUtensorMap a, b;
  CUtensorMap d;  // wgrad
};

/// Operands whose rows (of a) or columns (of b) are the innermost dim in memory, not the depth.
template <Direction kDirection>
constexpr bool kTransposedA = kDirection == Direction::wgrad;
template <Direction kDirection>
constexpr bool kTransposedB = kDirection != Direction::forward;

/// A place in the ring of stages.
struct Stage {
  int index = 0;
  std::uint32_t phase = 0;
  __device__ void advance() {
    if (++index == kStages) {
      index = 0;
      phase ^= 1;
    }
  }
};

// ---- loads ---------------------------------------------------------------------------------------

constexpr int kBoxBytes = 64 * 64 * 2;  // of a box of 64 x 64 elements

/// a of one stage. forward, dgrad: box 64 (depth) x 128 rows of [R, k]. wgrad: two boxes 64 x 64 (rows) of
/// [R, m].
template <Direction kDirection>
__device__ void load_a(const CUtensorMap& map, const Tile& tile, int k0, std::uint8_t* to,
                       hopper::Barrier& barrier) {
  const int row = tile.row_tile * kTileM;
  if constexpr (kDirection == Direction::wgrad) {
    for (int i = 0; i < kTileM / 64; ++i)
      hopper::load_box(map, row + i * 64, tile.first_row + k0, to + i * kBoxBytes, barrier);
  } else {
    hopper::load_box(map, k0, tile.first_row + row, to, barrier);
  }
}

/// One half (128 columns of the output) of b of one stage, for this block or for both. forward: box 64
/// (depth) x 128 of [E, n, k]. dgrad: two boxes 64 x 64 (depth) of [E, k, n]. wgrad: two boxes 64 x 64 (rows)
/// of [R, n].
template <Direction kDirection>
__device__ void load_b(const CUtensorMap& map, const Tile& tile, int k0, int half, std::uint8_t* stage,
                       hopper::Barrier& barrier) {
  const int column = tile.column_tile * kTileN + half * (kTileN / 2);
  std::uint8_t* to = stage + half * (kBytesB / 2);
  constexpr std::uint16_t kBoth = 3;
  if constexpr (kDirection == Direction::forward) {
    if (tile.shared)
      hopper::load_box_for(kBoth, map, k0, column, tile.expert, to, barrier);
    else
      hopper::load_box(map, k0, column, tile.expert, to, barrier);
  } else {
    for (int i = 0; i < 2; ++i, to += kBoxBytes) {
      const int x = column + i * 64, row = tile.first_row + k0;
      if (kDirection == Direction::dgrad && tile.shared)
        hopper::load_box_for(kBoth, map, x, k0, tile.expert, to, barrier);
      else if (kDirection == Direction::dgrad)
        hopper::load_box(map, x, k0, tile.expert, to, barrier);
      else if (tile.shared)
        hopper::load_box_for(kBoth, map, x, row, to, barrier);
      else
        hopper::load_box(map, x, row, to, barrier);
    }
  }
}

/// One thread.
template <Direction kDirection>
__device__ void produce(const Params& p, const Maps& maps, SharedStorage<kDirection>& shared) {
  const int half = hopper::rank_in_cluster();
  Schedule<kDirection> schedule(p, shared.order);
  Stage stage;
  for (Tile tile; schedule.next(tile);) {
    const int depth = depth_of<kDirection>(p, tile);
    for (int k0 = 0; k0 < depth; k0 += kTileK, stage.advance()) {
      const int s = stage.index;
      shared.barriers.empty[s].wait(stage.phase ^ 1);
      hopper::Barrier& barrier = shared.barriers.full[s];
      barrier.arrive_expecting(kBytesA + (tile.narrow ? kBytesB / 2 : kBytesB));
      load_a<kDirection>(maps.a, tile, k0, shared.a[s], barrier);
      // Of what the pair shares each block loads one half.
      if (!tile.shared || half == 0) load_b<kDirection>(maps.b, tile, k0, 0, shared.b[s], barrier);
      if (!tile.narrow && (!tile.shared || half == 1))
        load_b<kDirection>(maps.b, tile, k0, 1, shared.b[s], barrier);
    }
  }
}

// ---- products ------------------------------------------------------------------------------------

/// Rows past the end of the expert, in the last stage of a weight gradient, become zeros in a and b: rows of
/// other experts, or what no one has written. A row of a box is 128 bytes, whatever the swizzle. By all
/// consumers.
__device__ inline void clear_rows(std::uint8_t* a, std::uint8_t* b, int valid) {
  constexpr int kVectors = kBoxBytes / 16, kBoxesA = kBytesA / kBoxBytes, kBoxesB = kBytesB / kBoxBytes;
  const int thread = int(threadIdx.x) - (kThreads - kConsumers), first = valid * 128 / 16,
            count = kVectors - first;
  for (int box = 0; box < kBoxesA + kBoxesB; ++box) {
    auto* to =
        reinterpret_cast<uint4*>(box < kBoxesA ? a + box * kBoxBytes : b + (box - kBoxesA) * kBoxBytes);
    for (int i = thread; i < count; i += kConsumers) to[first + i] = uint4{0, 0, 0, 0};
  }
  hopper::publish_stores();
  hopper::synchronize_some<1, kConsumers>();
}

/// Multiplies all stages of one tile; kCount: sums of a thread, half as many for a narrow tile. release(s)
/// lets stage s go.
template <Direction kDirection, int kCount, class Release>
__device__ __forceinline__ void multiply_tile(const Params& p, const Tile& tile,
                                              SharedStorage<kDirection>& shared, Stage& stage, int group,
                                              float (&sums)[kCount], const Release& release) {
  constexpr bool kTa = kTransposedA<kDirection>, kTb = kTransposedB<kDirection>;
  const int depth = depth_of<kDirection>(p, tile);
  int before = -1;
  for (int k0 = 0; k0 < depth; k0 += kTileK, stage.advance()) {
    const int s = stage.index;
    shared.barriers.full[s].wait(stage.phase);
    if (kDirection == Direction::wgrad && k0 + kTileK > depth)
      clear_rows(shared.a[s], shared.b[s], depth - k0);
    const std::uint64_t a = hopper::describe_matrix<kTa>(shared.a[s] + group * kBoxBytes, kBoxBytes);
    const std::uint64_t b = hopper::describe_matrix<kTb>(shared.b[s], kBoxBytes);
    hopper::fence_sums(sums);
    hopper::begin_products();
#pragma unroll
    for (int i = 0; i < kTileK / 16; ++i)
      hopper::multiply<kTa, kTb>(sums, hopper::advance_16<kTa>(a, i), hopper::advance_16<kTb>(b, i),
                                 k0 > 0 || i > 0);
    hopper::commit_products();
    hopper::fence_sums(sums);
    if (before >= 0) {
      hopper::wait_for_products<1>();
      release(before);
    }
    before = s;
  }
  hopper::wait_for_products<0>();
  hopper::fence_sums(sums);
  release(before);
}

template <Direction kDirection>
__device__ void consume(const Params& p, const Maps& maps, SharedStorage<kDirection>& shared) {
  const int thread = int(threadIdx.x) - (kThreads - kConsumers), lane = thread % 32;
  const int group = __shfl_sync(0xffffffff, thread / 128, 0), in_group = thread % 128;
  float sums[kSums];
  [[maybe_unused]] int staged = 0;  // where the warp's next box is
  auto& narrow_sums = reinterpret_cast<float(&)[kSums / 2]>(sums);
  // One thread of the group tells each block of the pair.
  const auto release = [&](int s) {
    shared.barriers.empty[s].arrive_at(std::uint32_t(in_group), in_group < 2);
  };
  Schedule<kDirection> schedule(p, shared.order);
  Stage stage;
  for (Tile tile; schedule.next(tile);) {
    if (tile.narrow)
      multiply_tile<kDirection>(p, tile, shared, stage, group, narrow_sums, release);
    else
      multiply_tile<kDirection>(p, tile, shared, stage, group, sums, release);
    const int row = tile.row_tile * kTileM + group * 64 + in_group / 32 * 16;  // first of the warp's 16
    if constexpr (kDirection == Direction::wgrad)
      store_f32(maps.d, p, tile, sums, row, lane, shared.staging.of_warp[thread / 32], staged);
    else
      store_bf16(p, tile, sums, row + lane / 4, lane);
  }
  if constexpr (kDirection == Direction::wgrad) hopper::wait_for_stores();
}

template <Direction kDirection>
__global__ void __launch_bounds__(kThreads, 1)
    grouped_tiles(const __grid_constant__ Maps maps, const __grid_constant__ Params p) {
  extern __shared__ std::uint8_t memory[];
  auto& shared = *reinterpret_cast<SharedStorage<kDirection>*>(
      (reinterpret_cast<std::uintptr_t>(memory) + 1023) / 1024 * 1024);
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      shared.barriers.full[s].init(1);
      shared.barriers.empty[s].init(4);
    }
    hopper::fence_barrier_init();
  }
  fill_order<kDirection>(p, shared.order);
  __syncthreads();
  hopper::synchronize_cluster();  // the other block's barriers are set up too
  if (threadIdx.x < kThreads - kConsumers) {
    hopper::keep_registers<40>();
    if (threadIdx.x == 0) produce<kDirection>(p, maps, shared);
    __syncwarp();
  } else {
    hopper::take_registers<232>();
    consume<kDirection>(p, maps, shared);
  }
  hopper::synchronize_cluster();  // no block leaves while the other may still write to it
}

}  // namespace farskip::cuda::tiles
