// SPDX-License-Identifier: Apache-2.0
#pragma once
// A stable counting sort on the device: items 0 .. n-1 by keys in [0, num_keys), equal keys in order of item.
//
// Three launches. Chunks of items, a warp each, count their keys; for each key the chunks' counts are turned
// into their sums before each chunk; then every chunk, which adds the number of all items of lower keys,
// knows where its first item of each key goes. Only integers are added, so the result does not depend on any
// order.

#include "backend/cuda/launch.cuh"

namespace farskip::cuda {

struct CountingSort {
  static constexpr int kItemsPerChunk = 256;

  CountingSort(std::int64_t num_items, std::int64_t num_keys_)
      : items(num_items), chunks(ceil_div(num_items, kItemsPerChunk)), num_keys(static_cast<int>(num_keys_)) {
    FARSKIP_CHECK(num_items <= 0x7fffffff && num_keys_ > 0 && num_keys_ * 4 <= 48 << 10,
                  "{} items of {} keys", num_items, num_keys_);
  }
  /// Of scratch memory, i32: [keys, chunks] counts, then [keys] totals.
  std::size_t workspace_bytes() const {
    return static_cast<std::size_t>((chunks + 1) * num_keys) * sizeof(std::int32_t);
  }
  std::int64_t items, chunks;
  int num_keys;
};

/// counts[key, chunk] of the chunk of this block, which is one warp.
template <class Keys>
__global__ void count_keys_kernel(Keys keys, std::int32_t* counts, CountingSort sort) {
  extern __shared__ std::int32_t of_key[];
  for (int key = threadIdx.x; key < sort.num_keys; key += 32) of_key[key] = 0;
  __syncwarp();
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * CountingSort::kItemsPerChunk;
  const std::int64_t end = min(sort.items, begin + CountingSort::kItemsPerChunk);
  for (std::int64_t i = begin + threadIdx.x; i < end; i += 32) {
    const int key = keys.key(i);
    if (key < 0 || key >= sort.num_keys) __trap();
    atomicAdd(of_key + key, 1);
  }
  __syncwarp();
  for (int key = threadIdx.x; key < sort.num_keys; key += 32)
    counts[static_cast<std::int64_t>(key) * sort.chunks + blockIdx.x] = of_key[key];
}

/// Sum over the lanes before this one, and over all of them in `total`.
__device__ __forceinline__ std::int32_t warp_sum_before(std::int32_t x, std::int32_t* total) {
  std::int32_t sum = x;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const std::int32_t other = __shfl_up_sync(0xffffffffU, sum, step);
    if (static_cast<int>(threadIdx.x % 32) >= step) sum += other;
  }
  *total = __shfl_sync(0xffffffffU, sum, 31);
  return sum - x;
}

/// One warp a key: its counts become the sums of the chunks before, and totals[key] their sum.
inline __global__ void sum_chunks_kernel(std::int32_t* counts, std::int32_t* totals, CountingSort sort) {
  std::int32_t* of_chunk = counts + static_cast<std::int64_t>(blockIdx.x) * sort.chunks;
  std::int32_t before = 0;
  for (std::int64_t first = 0; first < sort.chunks; first += 32) {
    const std::int64_t chunk = first + threadIdx.x;
    std::int32_t total = 0;
    const std::int32_t sum = warp_sum_before(chunk < sort.chunks ? of_chunk[chunk] : 0, &total);
    if (chunk < sort.chunks) of_chunk[chunk] = before + sum;
    before += total;
  }
  if (threadIdx.x == 0) totals[blockIdx.x] = before;
}

/// keys.place(item, where it goes) for every item; keys.offsets(key, first place of it) by the first block,
/// also for the key past the last. One warp a chunk; launched with one block at least.
template <class Keys>
__global__ void place_items_kernel(Keys keys, const std::int32_t* counts, const std::int32_t* totals,
                                   CountingSort sort) {
  extern __shared__ std::int32_t next[];  // place of the chunk's next item of each key
  const int lane = static_cast<int>(threadIdx.x);
  std::int32_t before = 0;
  for (int first = 0; first < sort.num_keys; first += 32) {
    const int key = first + lane;
    std::int32_t total = 0;
    const std::int32_t lower = before + warp_sum_before(key < sort.num_keys ? totals[key] : 0, &total);
    before += total;
    if (key >= sort.num_keys) continue;
    if (blockIdx.x == 0) keys.offset(key, lower);
    if (sort.chunks > 0)
      next[key] = lower + counts[static_cast<std::int64_t>(key) * sort.chunks + blockIdx.x];
  }
  if (blockIdx.x == 0 && lane == 0) keys.offset(sort.num_keys, before);
  __syncwarp();
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * CountingSort::kItemsPerChunk;
  const std::int64_t end = min(sort.items, begin + CountingSort::kItemsPerChunk);
  for (std::int64_t first = begin; first < end; first += 32) {
    const std::int64_t item = first + lane;
    const int key = item < end ? keys.key(item) : -1;
    const unsigned same = __match_any_sync(0xffffffffU, key);
    const int rank = __popc(same & ((1U << lane) - 1));
    if (key >= 0) keys.place(item, next[key] + rank);
    __syncwarp();
    if (key >= 0 && rank == 0) next[key] += __popc(same);
    __syncwarp();
  }
}

/// Keys: int key(item), void place(item, to), void offset(key, first place), all __device__ const.
template <class Keys>
void sort_by_counting(const KernelCall& call, const Keys& keys, const CountingSort& sort,
                      std::byte* workspace) {
  auto* counts = reinterpret_cast<std::int32_t*>(workspace);
  std::int32_t* totals = counts + sort.chunks * sort.num_keys;
  const std::size_t shared = static_cast<std::size_t>(sort.num_keys) * sizeof(std::int32_t);
  launch(call, count_keys_kernel<Keys>, grid_size(sort.chunks), 32, shared, keys, counts, sort);
  launch(call, sum_chunks_kernel, grid_size(sort.num_keys), 32, 0, counts, totals, sort);
  launch(call, place_items_kernel<Keys>, grid_size(std::max<std::int64_t>(sort.chunks, 1)), 32, shared, keys,
         counts, totals, sort);
}

}  // namespace farskip::cuda
