// SPDX-License-Identifier: Apache-2.0
// The next token of each row of logits. One block a row, which reads the row from the cache again for every
// digit of a threshold; nothing is sorted.
#include "backend/cuda/launch.cuh"
#include "backend/sampling_row.h"
#include "ops/inference_ops.h"

namespace farskip {
namespace cuda {
namespace {

using sampling::Masses;
using sampling::RowOptions;

constexpr int kRowThreads = 512, kRowWarps = kRowThreads / 32;
constexpr int kBinsPerThread = sampling::kBins / kRowThreads;
constexpr unsigned kAllLanes = 0xffffffffU;

struct SampleArguments {
  const float *logits, *real;
  const std::int32_t *whole, *seen;
  std::int32_t* ids;
  std::int64_t vocab, words;
  std::int32_t num_ids;
};

/// Logits of the ids that may be chosen, with the penalty.
struct Row {
  const float* logits;
  const std::int32_t* seen;  // nullptr: no penalty
  float penalty;
  std::int32_t num_ids;

  /// f(id, logit) for the ids below `end` in packs of N that begin at first, first + step, …. `Unroll` packs
  /// are loaded at once.
  template <int N, int Unroll, class F>
  __device__ __forceinline__ void for_each(std::int32_t first, std::int32_t step, std::int32_t end,
                                           const F& f) const {
    for (std::int64_t base = first; base < end; base += static_cast<std::int64_t>(step) * Unroll) {
      float x[Unroll][N];
#pragma unroll
      for (int u = 0; u < Unroll; ++u)
        if (base + u * step < end) load<N>(logits + base + u * step, x[u]);
#pragma unroll
      for (int u = 0; u < Unroll; ++u) {
        const auto i = static_cast<std::int32_t>(base + u * step);
        if (base + u * step >= end) break;
        if (seen != nullptr) penalise(x[u], static_cast<unsigned>(seen[i / 32]) >> (i % 32));
#pragma unroll
        for (int j = 0; j < N; ++j)
          if (i + j < end) f(i + j, x[u][j]);
      }
    }
  }
  template <int N>
  __device__ __forceinline__ void penalise(float (&x)[N], unsigned bits) const {
    if (bits << (32 - N) == 0) return;
#pragma unroll
    for (int j = 0; j < N; ++j)
      if ((bits >> j & 1U) != 0) x[j] = sampling::penalised(x[j], penalty);
  }
  /// The ids of this thread when the block takes the whole row.
  template <int N, class F>
  __device__ __forceinline__ void for_my_ids(const F& f) const {
    for_each<N, 2>(static_cast<std::int32_t>(threadIdx.x) * N, kRowThreads * N, num_ids, f);
  }
};

/// Shared memory of a block. A function that ends with a barrier may be followed by any other.
struct RowScratch {
  // A sum of 64 bits per bin, in two words: shared memory has no fast atomic addition of 64 bits.
  std::uint32_t low[sampling::kBins], high[sampling::kBins];
  std::uint64_t warps[kRowWarps];
  std::uint64_t wanted;
  std::uint32_t digit;
  std::int32_t id;

  __device__ __forceinline__ void add(std::uint32_t bin, std::uint64_t weight) {
    const auto part = static_cast<std::uint32_t>(weight);
    const std::uint32_t before = atomicAdd(low + bin, part);
    const std::uint32_t carried =
        static_cast<std::uint32_t>(weight >> 32) + (before + part < before ? 1U : 0U);
    if (carried != 0) atomicAdd(high + bin, carried);
  }
  __device__ __forceinline__ std::uint64_t bin(std::uint32_t i) const {
    return static_cast<std::uint64_t>(high[i]) << 32 | low[i];
  }
};

/// Sum over the lanes up to this one.
__device__ __forceinline__ std::uint64_t warp_sum_up_to(std::uint64_t x) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const std::uint64_t other = __shfl_up_sync(kAllLanes, x, step);
    if (static_cast<int>(threadIdx.x % 32) >= step) x += other;
  }
  return x;
}

/// Sum of x over the threads before this one, and over all of them in `total`. One barrier at its end.
__device__ std::uint64_t block_sum_before(std::uint64_t x, std::uint64_t& total, RowScratch& scratch) {
  const unsigned warp = threadIdx.x / 32;
  const std::uint64_t up_to = warp_sum_up_to(x);
  if (threadIdx.x % 32 == 31) scratch.warps[warp] = up_to;
  __syncthreads();
  std::uint64_t before = up_to - x;
  total = 0;
  for (unsigned w = 0; w < kRowWarps; ++w) {
    if (w == warp) before += total;
    total += scratch.warps[w];
  }
  __syncthreads();
  return before;
}

/// The largest key in the upper half; below it the complement of its lowest id.
template <int N>
__device__ std::uint64_t find_best(const Row& row, RowScratch& scratch) {
  std::uint64_t best = 0;
  row.for_my_ids<N>([&](std::int32_t i, float logit) {
    const std::uint32_t key = sampling::logit_key(logit);
    best = max(best, static_cast<std::uint64_t>(key) << 32 | ~static_cast<std::uint32_t>(i));
  });
#pragma unroll
  for (int step = 16; step > 0; step /= 2) best = max(best, __shfl_xor_sync(kAllLanes, best, step));
  if (threadIdx.x % 32 == 0) scratch.warps[threadIdx.x / 32] = best;
  __syncthreads();
  for (int w = 0; w < kRowWarps; ++w) best = max(best, scratch.warps[w]);
  __syncthreads();
  return best;
}

/// The largest key such that the weights of all ids with that key or a larger one sum to target(sum of all
/// weights) at least; as on the CPU.
template <int N, class Weight, class Target>
__device__ std::uint32_t find_threshold(const Row& row, const Weight& weight, const Target& target,
                                        RowScratch& scratch) {
  std::uint32_t known = 0, known_bits = 0;
  std::uint64_t wanted = 0;
  for (int d = 0; d < sampling::kDigits; ++d) {
    const int shift = sampling::shift_of(d);
    // Of the logits whose upper digits are known; one of them may be NaN, which then is no bound.
    const float low = float_of_key(known), high = float_of_key(known | ~known_bits);
    for (int i = threadIdx.x; i < sampling::kBins; i += kRowThreads) scratch.low[i] = scratch.high[i] = 0;
    __syncthreads();
    row.for_my_ids<N>([&](std::int32_t, float logit) {
      if (logit < low || logit > high) return;
      if (const std::uint64_t w = weight(logit); w != 0)
        scratch.add((order_key(logit) >> shift) % sampling::kBins, w);
    });
    __syncthreads();
    // Thread 0 has the largest digits.
    std::uint32_t digit = sampling::kBins - 1 - threadIdx.x * kBinsPerThread;
    std::uint64_t mine = 0, total = 0;
#pragma unroll
    for (int b = 0; b < kBinsPerThread; ++b) mine += scratch.bin(digit - b);
    const std::uint64_t before = block_sum_before(mine, total, scratch);
    if (d == 0) wanted = target(total);
    if (before < wanted && wanted <= before + mine) {
      wanted -= before;
      for (; scratch.bin(digit) < wanted; --digit) wanted -= scratch.bin(digit);
      scratch.digit = digit;
      scratch.wanted = wanted;
    }
    __syncthreads();
    known |= scratch.digit << shift;
    known_bits = kAllLanes << shift;
    wanted = scratch.wanted;
  }
  return known;
}

/// The id at which the cumulated masses exceed the point, among the ids [begin, end) of this warp.
template <int N, class Mass>
__device__ void find_id(const Row& row, std::int32_t begin, std::int32_t end, std::uint64_t point,
                        const Mass& mass, RowScratch& scratch) {
  const auto lane = static_cast<std::int32_t>(threadIdx.x % 32);
  for (std::int32_t first = begin; first < end; first += 32 * N) {
    std::uint64_t masses[N] = {}, mine = 0;
    const std::int32_t at = first + lane * N;
    row.for_each<N, 1>(at, N, min(end, at + N), [&](std::int32_t i, float logit) {
      const std::uint64_t m = mass(logit);
#pragma unroll
      for (int j = 0; j < N; ++j)
        if (i == at + j) masses[j] = m;
      mine += m;
    });
    const std::uint64_t up_to = warp_sum_up_to(mine);
    const unsigned past = __ballot_sync(kAllLanes, up_to > point);
    if (past == 0) {
      point -= __shfl_sync(kAllLanes, up_to, 31);
      continue;
    }
    if (lane == __ffs(static_cast<int>(past)) - 1) {
      std::uint64_t sum = up_to - mine;
      std::int32_t id = at;
#pragma unroll
      for (int j = 0; j < N; ++j)
        if ((sum += masses[j]) <= point) ++id;
      scratch.id = id;
    }
    return;
  }
}

/// Each warp sums the masses of a range of ids of its own; the one whose range holds the point finds the id.
template <int N>
__device__ std::int32_t draw(const Row& row, const RowOptions& options, std::uint32_t largest,
                             RowScratch& scratch) {
  const Masses masses(largest, options.temperature);
  float least = -INFINITY;  // the smallest logit that is kept
  if (const std::uint64_t kept = options.kept_of(row.num_ids); kept > 0)
    least = float_of_key(find_threshold<N>(
        row, [](float) { return std::uint64_t{1}; }, [&](std::uint64_t) { return kept; }, scratch));
  if (options.has_top_p())
    least = float_of_key(find_threshold<N>(
        row, [&](float logit) { return logit >= least ? masses.of(logit) : std::uint64_t{0}; },
        [&](std::uint64_t total) { return options.nucleus(total); }, scratch));

  const std::uint64_t least_mass = options.least_mass();
  const auto kept_mass = [&](float logit) {
    const std::uint64_t mass = logit >= least ? masses.of(logit) : 0;
    return mass >= least_mass ? mass : 0;
  };
  const std::int32_t packs = (row.num_ids + 32 * N - 1) / (32 * N);
  const std::int32_t range = (packs + kRowWarps - 1) / kRowWarps * 32 * N;
  const auto warp = static_cast<std::int32_t>(threadIdx.x / 32),
             lane = static_cast<std::int32_t>(threadIdx.x % 32);
  const std::int32_t begin = min(row.num_ids, warp * range), end = min(row.num_ids, begin + range);
  std::uint64_t mine = 0, total = 0;
  row.for_each<N, 2>(begin + lane * N, 32 * N, end,
                     [&](std::int32_t, float logit) { mine += kept_mass(logit); });
  const std::uint64_t of_warp = warp_sum(mine);
  const std::uint64_t before = block_sum_before(lane == 0 ? of_warp : 0, total, scratch);
  const std::uint64_t point = options.point(total), first = __shfl_sync(kAllLanes, before, 0);
  if (first <= point && point < first + of_warp)
    find_id<N>(row, begin, end, point - first, kept_mass, scratch);
  __syncthreads();
  return scratch.id;
}

template <int N>
__global__ void __launch_bounds__(kRowThreads, 2) sample_kernel(SampleArguments a) {
  __shared__ RowScratch scratch;
  const std::int64_t r = blockIdx.x;
  const RowOptions options = RowOptions::read(a.real + r * 4, a.whole + r * 4);
  const std::int32_t* seen = a.seen != nullptr ? a.seen + r * a.words : nullptr;
  const Row row{.logits = a.logits + r * a.vocab,
                .seen = options.repetition_penalty != 1.0F ? seen : nullptr,
                .penalty = options.repetition_penalty,
                .num_ids = a.num_ids};
  const std::uint64_t best = find_best<N>(row, scratch);
  const auto largest = static_cast<std::uint32_t>(best >> 32);
  auto id = static_cast<std::int32_t>(~static_cast<std::uint32_t>(best));
  if (!sampling::is_choice(largest))
    id = -1;
  else if (options.temperature > 0.0F)
    id = draw<N>(row, options, largest, scratch);
  if (threadIdx.x == 0) a.ids[r] = id;
}

// logits[n, V], real[n, 4], whole[n, 4], [seen[n, words]] → ids[n]
void run_sample(const KernelCall& call) {
  const std::int64_t rows = call.in_shape(0)[0], vocab = call.in_shape(0)[1];
  const std::int64_t num_ids = call.get<ops::Sample>().num_ids;
  const SampleArguments a{.logits = call.in(0),
                          .real = call.in(1),
                          .whole = call.in<std::int32_t>(2),
                          .seen = call.has(3) ? call.in<std::int32_t>(3) : nullptr,
                          .ids = call.out<std::int32_t>(0),
                          .vocab = vocab,
                          .words = (vocab + 31) / 32,
                          .num_ids = static_cast<std::int32_t>(num_ids > 0 ? num_ids : vocab)};
  const bool wide = vocab % 4 == 0 && is_aligned(a.logits);
  launch(call, wide ? sample_kernel<4> : sample_kernel<1>, grid_size(rows), kRowThreads, 0, a);
}

}  // namespace
}  // namespace cuda

void register_cuda_sampling(KernelTable& table);
void register_cuda_sampling(KernelTable& table) {
  table.add("sample", DType::f32, DeviceKind::cuda, {.run = cuda::run_sample});
}

}  // namespace farskip
