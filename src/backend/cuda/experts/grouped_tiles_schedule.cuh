// SPDX-License-Identifier: Apache-2.0
#pragma once
// Which tile of which expert a block of grouped_tiles.cuh computes, and in what order: from the offsets on
// the device, by every block alike.
//
// Blocks work in pairs. Two row tiles below each other are a pair's; of an odd number of them the last is
// taken two column tiles at a time. Tiles are dealt out in turns, largest experts first, back and forth, so
// that pairs end at about the same time.

#include <cstdint>

#include "backend/cuda/experts/grouped_tiles.h"

namespace farskip::cuda::tiles {

constexpr int kTileM = 128, kTileN = 256, kThreads = 384, kMaxExperts = int(kMaxTileExperts);

enum class Direction { forward, dgrad, wgrad };

struct Params {
  const std::int32_t* offsets;
  int experts;
  int m;     // wgrad: rows of dw of an expert
  int n;     // columns of the output
  int k;     // forward, dgrad: depth
  void* d;   // forward, dgrad
  bool add;  // wgrad: to what is in dw
};

/// Experts by falling number of rows, and the tiles of pairs before each.
struct Order {
  int experts[kMaxExperts];
  int first_tile[kMaxExperts + 1];
};

/// What a block computes next.
struct Tile {
  int expert, row_tile, column_tile;
  int rows, first_row;  // of the expert
  bool shared;          // both blocks of the pair have the same column tile, and share its loads
  bool narrow;          // only the left half of its columns exists
  bool store;
};

__host__ __device__ constexpr int tiles_of(int size, int tile) {
  return (size + tile - 1) / tile;
}

/// Of an expert: pairs of row tiles with each column tile, and two column tiles of a last row tile at a time.
__device__ inline int pair_tiles(int row_tiles, int column_tiles) {
  return row_tiles / 2 * column_tiles + (row_tiles % 2 == 0 ? 0 : (column_tiles + 1) / 2);
}

template <Direction kDirection>
__device__ int row_tiles_of(const Params& p, int rows) {
  if (rows == 0) return 0;
  return tiles_of(kDirection == Direction::wgrad ? p.m : rows, kTileM);
}

/// By all threads; they must synchronise before it is read.
template <Direction kDirection>
__device__ void fill_order(const Params& p, Order& order) {
  for (int e = int(threadIdx.x); e < p.experts; e += kThreads) {
    const int rows = p.offsets[e + 1] - p.offsets[e];
    int place = 0;
    for (int other = 0; other < p.experts; ++other) {
      const int its = p.offsets[other + 1] - p.offsets[other];
      place += its > rows || (its == rows && other < e);
    }
    order.experts[place] = e;
    order.first_tile[place + 1] = pair_tiles(row_tiles_of<kDirection>(p, rows), tiles_of(p.n, kTileN));
  }
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const int lane = int(threadIdx.x);
  if (lane == 0) order.first_tile[0] = 0;
  int before = 0;
  for (int i = lane; i - lane < p.experts; i += 32) {
    int sum = i < p.experts ? order.first_tile[i + 1] : 0;
    for (int step = 1; step < 32; step *= 2) {
      const int left = __shfl_up_sync(0xffffffff, sum, step);
      if (lane >= step) sum += left;
    }
    if (i < p.experts) order.first_tile[i + 1] = before + sum;
    before += __shfl_sync(0xffffffff, sum, 31);
  }
}

/// The tiles of one block, in order.
template <Direction kDirection>
class Schedule {
 public:
  __device__ Schedule(const Params& p, const Order& order)
      : p_(p),
        order_(order),
        pair_(int(blockIdx.x) / 2),
        pairs_(int(gridDim.x) / 2),
        half_(int(blockIdx.x) % 2) {}

  __device__ bool next(Tile& tile) {
    const int index = round_ * pairs_ + (round_ % 2 == 0 ? pair_ : pairs_ - 1 - pair_);
    ++round_;
    if (index >= order_.first_tile[p_.experts]) return false;  // so are those of all later rounds
    while (index >= order_.first_tile[place_ + 1]) ++place_;
    tile.expert = order_.experts[place_];
    tile.first_row = p_.offsets[tile.expert];
    tile.rows = p_.offsets[tile.expert + 1] - tile.first_row;
    const int row_tiles = row_tiles_of<kDirection>(p_, tile.rows), column_tiles = tiles_of(p_.n, kTileN);
    const int at = index - order_.first_tile[place_];
    tile.shared = at < row_tiles / 2 * column_tiles;
    if (tile.shared) {
      tile.row_tile = at / column_tiles * 2 + half_;
      tile.column_tile = at % column_tiles;
      tile.store = true;
    } else {  // the second block may be left over: it repeats the tile of the first and stores nothing
      const int column = (at - row_tiles / 2 * column_tiles) * 2 + half_;
      tile.row_tile = row_tiles - 1;
      tile.store = column < column_tiles;
      tile.column_tile = tile.store ? column : column_tiles - 1;
    }
    tile.narrow = p_.n - tile.column_tile * kTileN <= kTileN / 2;
    return true;
  }

 private:
  const Params& p_;
  const Order& order_;
  int pair_, pairs_, half_, round_ = 0, place_ = 0;
};

template <Direction kDirection>
__device__ int depth_of(const Params& p, const Tile& tile) {
  return kDirection == Direction::wgrad ? tile.rows : p.k;
}

}  // namespace farskip::cuda::tiles
