// SPDX-License-Identifier: Apache-2.0
// Gradient norm, clip factor, the AdamW update and the average of weights.
#include "backend/cuda/launch.cuh"
#include "backend/random_rounding.h"
#include "farskip/ops/optimizer_ops.h"

namespace farskip {
namespace cuda {
namespace {

constexpr std::int64_t kElementsPerTile = 32768;
constexpr int kTensorsPerLaunch = 128;

/// Some tensors, passed by value so that nothing has to be copied to the device.
struct Tensors {
  const float* data[kTensorsPerLaunch];
  std::int64_t size[kTensorsPerLaunch];
  std::int32_t first_tile[kTensorsPerLaunch + 1];
  int num;
};
static_assert(sizeof(Tensors) <= 4000);

std::int64_t num_tiles(const Shape& shape) {
  return ceil_div(shape.num_elements(), kElementsPerTile);
}

/// sums[tile] = Σ of the squares of the tile, in f64.
__global__ void __launch_bounds__(kThreads)
    tile_squares_kernel(const __grid_constant__ Tensors tensors, double* sums) {
  __shared__ double shared[kWarpsPerBlock];
  const auto tile = static_cast<std::int32_t>(blockIdx.x);
  int low = 0, high = tensors.num;  // the tensor lies in [low, high)
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (tensors.first_tile[middle] <= tile ? low : high) = middle;
  }
  const std::int64_t begin = (tile - tensors.first_tile[low]) * kElementsPerTile;
  const float* values = tensors.data[low] + begin;
  const auto size = static_cast<int>(min(kElementsPerTile, tensors.size[low] - begin));
  double sum = 0.0;
  const auto add = [&](float x) { sum += static_cast<double>(x) * static_cast<double>(x); };
  const bool wide = reinterpret_cast<std::uintptr_t>(values) % 16 == 0;
  const int vectors = wide ? size / 4 : 0;
#pragma unroll 8
  for (int i = static_cast<int>(threadIdx.x); i < vectors; i += kThreads) {
    const float4 v = reinterpret_cast<const float4*>(values)[i];
    add(v.x);
    add(v.y);
    add(v.z);
    add(v.w);
  }
  for (int i = 4 * vectors + static_cast<int>(threadIdx.x); i < size; i += kThreads) add(values[i]);
  sum = block_sum<kThreads>(sum, shared);
  if (threadIdx.x == 0) sums[tile] = sum;
}

constexpr int kSumThreads = 1024;

__global__ void __launch_bounds__(kSumThreads)
    sum_tiles_kernel(const double* sums, std::int64_t tiles, double* out) {
  __shared__ double shared[kSumThreads / 32];
  double sum = 0.0;
#pragma unroll 4
  for (std::int64_t i = threadIdx.x; i < tiles; i += kSumThreads) sum += sums[i];
  sum = block_sum<kSumThreads>(sum, shared);
  if (threadIdx.x == 0) *out = sum;
}

std::size_t sum_of_squares_workspace(const OpTypes& types) {
  std::int64_t tiles = 0;
  for (std::size_t i = 0; i < types.inputs.size(); ++i) tiles += num_tiles(types.shape(i));
  return static_cast<std::size_t>(tiles) * sizeof(double);
}

// Tensors → [1] f64
void run_sum_of_squares(const KernelCall& call) {
  auto* sums = reinterpret_cast<double*>(call.workspace.data());
  std::int64_t done = 0;  // tiles of earlier launches
  for (std::size_t begin = 0; begin < call.inputs.size(); begin += kTensorsPerLaunch) {
    const std::size_t end = std::min<std::size_t>(call.inputs.size(), begin + kTensorsPerLaunch);
    Tensors tensors{};
    std::int64_t tiles = 0;
    for (std::size_t i = begin; i < end; ++i) {
      if (call.inputs[i].num_elements() == 0) continue;
      tensors.data[tensors.num] = call.in(i);
      tensors.size[tensors.num] = call.inputs[i].num_elements();
      tensors.first_tile[tensors.num++] = static_cast<std::int32_t>(tiles);
      tiles += num_tiles(call.in_shape(i));
    }
    launch(call, tile_squares_kernel, grid_size(tiles), kThreads, 0, tensors, sums + done);
    done += tiles;
  }
  launch(call, sum_tiles_kernel, 1, kSumThreads, 0, sums, done, call.out<double>(0));
}

constexpr int kFlagsPerLaunch = 256;

struct Flags {
  const std::int32_t* data[kFlagsPerLaunch];
  int num;
};
static_assert(sizeof(Flags) <= 4000);

/// `number` may be `out`.
__global__ void __launch_bounds__(kFlagsPerLaunch)
    find_fault_kernel(const float* number, const __grid_constant__ Flags flags, float* out) {
  const auto i = static_cast<int>(threadIdx.x);
  const bool wrong = i < flags.num && *flags.data[i] != 0;
  const bool fault = __syncthreads_or(wrong) != 0;
  if (i == 0) *out = fault || !isfinite(*number) ? INFINITY : 0.0F;
}

// number, flags → [1]
void run_find_fault(const KernelCall& call) {
  const float* number = call.in(0);
  std::size_t next = 1;
  do {
    Flags flags{};
    for (; next < call.inputs.size() && flags.num < kFlagsPerLaunch; ++next)
      flags.data[flags.num++] = call.in<std::int32_t>(next);
    launch(call, find_fault_kernel, 1, kFlagsPerLaunch, 0, number, flags, call.out(0));
    number = call.out(0);  // what was found goes on
  } while (next < call.inputs.size());
}

struct Sums {
  const double* data[8];
  int num;
};

__global__ void clip_factor_kernel(Sums sums, double max_norm, float* norm_out, float* factor) {
  double sum = 0.0;
  for (int i = 0; i < sums.num; ++i) sum += *sums.data[i];
  const double norm = sqrt(sum);
  *norm_out = static_cast<float>(norm);
  if (!isfinite(*norm_out)) {  // what is told and what is done agree beyond the range of f32 too
    *factor = 0.0F;
  } else {
    *factor = max_norm > 0.0 ? static_cast<float>(fmin(1.0, max_norm / (norm + 1e-6))) : 1.0F;
  }
}

void run_clip_factor(const KernelCall& call) {
  Sums sums{};
  FARSKIP_CHECK(call.inputs.size() <= std::size(sums.data), "{} sums", call.inputs.size());
  for (std::size_t i = 0; i < call.inputs.size(); ++i) sums.data[sums.num++] = call.in<double>(i);
  launch(call, clip_factor_kernel, 1, 1, 0, sums, call.get<ops::ClipFactor>().max_norm, call.out(0),
         call.out(1));
}

/// What every element of an update shares, apart from what stands on the device (factor, hyper).
template <class Moment>
struct AdamWArguments {
  const float *p, *gradient, *factor, *hyper;
  const Moment *m, *v;
  float* p_out;  // may be p, as the next ones m, v
  Moment *m_out, *v_out;
  bf16* low_copy;  // may be nullptr
  std::int64_t n;
  float beta1, beta2, rest1, rest2, eps;
  double weight_decay;
  ops::StateRounding rounding;
};

/// Stores N moments; those in bf16 are rounded by the bits of their words from `shift` on.
template <int N>
__device__ void store_moments(float* to, const float (&values)[N], const std::uint32_t (&)[N], int) {
  store<N>(to, values);
}
template <int N>
__device__ void store_moments(bf16* to, const float (&values)[N], const std::uint32_t (&words)[N],
                              int shift) {
  std::uint16_t low[N];
#pragma unroll
  for (int i = 0; i < N; ++i) low[i] = round_at_random(values[i], words[i] >> shift & 0xffffU);
  if constexpr (N == 4) {
    *reinterpret_cast<uint2*>(to) =
        uint2{low[0] | std::uint32_t{low[1]} << 16, low[2] | std::uint32_t{low[3]} << 16};
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) reinterpret_cast<std::uint16_t*>(to)[i] = low[i];
  }
}

template <int N>
__device__ void load_moments(const float* from, float (&values)[N]) {
  load<N>(from, values);
}
template <int N>
__device__ void load_moments(const bf16* from, float (&values)[N]) {
  if constexpr (N == 4) {
    const uint2 four = *reinterpret_cast<const uint2*>(from);
    values[0] = __uint_as_float(four.x << 16);
    values[1] = __uint_as_float(four.x & 0xffff0000U);
    values[2] = __uint_as_float(four.y << 16);
    values[3] = __uint_as_float(four.y & 0xffff0000U);
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = to_float(from[i]);
  }
}

/// The words of N elements; with N 4 they are one block.
template <int N>
__device__ void draw_words(const RoundingBits& bits, std::int64_t position, std::uint32_t (&words)[N]) {
  if constexpr (N == 4) {
    const RoundingBits::Block block = bits.block(static_cast<std::uint64_t>(position) / 4);
#pragma unroll
    for (int i = 0; i < N; ++i) words[i] = block[i];
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) words[i] = bits.word(static_cast<std::uint64_t>(position + i));
  }
}

struct AdamWStep {
  template <class Moment>
  __device__ explicit AdamWStep(const AdamWArguments<Moment>& a)
      : factor(*a.factor),
        keep(static_cast<float>(1.0 - static_cast<double>(a.hyper[ops::kLearningRate]) * a.weight_decay)),
        step(a.hyper[ops::kLearningRate] * a.hyper[ops::kOverC1]),
        over_c2(a.hyper[ops::kOverC2]) {}
  template <class Moment>
  __device__ void update(const AdamWArguments<Moment>& a, float& p, float& m, float& v,
                         float gradient) const {
    if (factor == 0.0F) return;  // the gradient may be NaN: nothing changes
    const float g = factor * gradient;
    v = a.beta2 * v + a.rest2 * g * g;
    m = a.beta1 * m + a.rest1 * g;
    p = keep * p - step * m / (sqrtf(v * over_c2) + a.eps);
  }
  float factor, keep, step, over_c2;
};

/// N elements a thread, twice, all loaded before the first is stored. The tail is done singly.
template <int N, class Moment>
__global__ void __launch_bounds__(kThreads) adamw_kernel(AdamWArguments<Moment> a) {
  constexpr int vectors = 2;
  const AdamWStep step(a);
  const RoundingBits bits(a.rounding, a.hyper[ops::kStep]);
  const auto store_both = [&](std::int64_t at, const auto& m, const auto& v) {
    constexpr int count = sizeof(m) / sizeof(float);
    std::uint32_t words[count] = {};
    if constexpr (sizeof(Moment) == 2)
      if (step.factor != 0.0F) draw_words<count>(bits, a.rounding.first + at, words);
    store_moments<count>(a.m_out + at, m, words, 0);
    store_moments<count>(a.v_out + at, v, words, 16);
  };
  const std::int64_t first = (static_cast<std::int64_t>(blockIdx.x) * vectors * kThreads + threadIdx.x) * N;
  float p[vectors][N], m[vectors][N], v[vectors][N], g[vectors][N];
#pragma unroll
  for (int k = 0; k < vectors; ++k) {
    const std::int64_t at = first + static_cast<std::int64_t>(k) * kThreads * N;
    if (at + N > a.n) continue;
    load<N>(a.p + at, p[k]);
    load_moments<N>(a.m + at, m[k]);
    load_moments<N>(a.v + at, v[k]);
    load<N>(a.gradient + at, g[k]);
  }
#pragma unroll
  for (int k = 0; k < vectors; ++k) {
    const std::int64_t at = first + static_cast<std::int64_t>(k) * kThreads * N;
    if (at + N <= a.n) {
#pragma unroll
      for (int i = 0; i < N; ++i) step.update(a, p[k][i], m[k][i], v[k][i], g[k][i]);
      store<N>(a.p_out + at, p[k]);
      store_both(at, m[k], v[k]);
      if (a.low_copy != nullptr) {
        if constexpr (N == 4) {
          __nv_bfloat162 pairs[2] = {__floats2bfloat162_rn(p[k][0], p[k][1]),
                                     __floats2bfloat162_rn(p[k][2], p[k][3])};
          *reinterpret_cast<uint2*>(a.low_copy + at) = *reinterpret_cast<const uint2*>(pairs);
        } else {
          store_one(a.low_copy + at, p[k][0]);
        }
      }
    } else {
      for (std::int64_t i = at; i < a.n; ++i) {
        float one_p = a.p[i], one_m[1] = {to_float(a.m[i])}, one_v[1] = {to_float(a.v[i])};
        step.update(a, one_p, one_m[0], one_v[0], a.gradient[i]);
        a.p_out[i] = one_p;
        store_both(i, one_m, one_v);
        if (a.low_copy != nullptr) store_one(a.low_copy + i, one_p);
      }
    }
  }
}

template <class Moment>
void launch_adamw(const KernelCall& call) {
  const auto& attributes = call.get<ops::AdamW>();
  const AdamWArguments<Moment> a{.p = call.in(0),
                                 .gradient = call.in(3),
                                 .factor = call.in(4),
                                 .hyper = call.in(5),
                                 .m = call.in<Moment>(1),
                                 .v = call.in<Moment>(2),
                                 .p_out = call.out(0),
                                 .m_out = call.out<Moment>(1),
                                 .v_out = call.out<Moment>(2),
                                 .low_copy = call.outputs.size() > 3 ? call.out<bf16>(3) : nullptr,
                                 .n = call.in_shape(0).num_elements(),
                                 .beta1 = static_cast<float>(attributes.beta1),
                                 .beta2 = static_cast<float>(attributes.beta2),
                                 .rest1 = static_cast<float>(1.0 - attributes.beta1),
                                 .rest2 = static_cast<float>(1.0 - attributes.beta2),
                                 .eps = static_cast<float>(attributes.eps),
                                 .weight_decay = attributes.weight_decay,
                                 .rounding = attributes.rounding};
  const bool wide = is_aligned(a.p, a.m, a.v, a.gradient, a.p_out, a.m_out, a.v_out, a.low_copy) &&
                    a.rounding.first % 4 == 0;  // four elements share random bits
  launch(call, wide ? adamw_kernel<4, Moment> : adamw_kernel<1, Moment>,
         grid_size(ceil_div(a.n, 2 * kThreads * (wide ? 4 : 1))), kThreads, 0, a);
}

// parameter, m, v, gradient, factor[1], hyper → parameter, m, v, [parameter in bf16]
void run_adamw(const KernelCall& call) {
  if (call.inputs[1].dtype == DType::bf16)
    launch_adamw<bf16>(call);
  else
    launch_adamw<float>(call);
}

/// `out` may be `average`.
template <int N>
__global__ void __launch_bounds__(kThreads)
    moving_average_kernel(const float* average, const float* p, const float* factor, const float* hyper,
                          ops::MovingAverage attributes, std::int64_t n, float* out) {
  const float share = attributes.share(*factor, hyper[ops::kStep]);
  const std::int64_t at = (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * N;
  if (at + N <= n) {
    float a[N], b[N];
    load<N>(average + at, a);
    load<N>(p + at, b);
#pragma unroll
    for (int i = 0; i < N; ++i) a[i] += share * (b[i] - a[i]);
    store<N>(out + at, a);
  } else {
    for (std::int64_t i = at; i < n; ++i) out[i] = average[i] + share * (p[i] - average[i]);
  }
}

// average, parameter, factor[1], hyper → average
void run_moving_average(const KernelCall& call) {
  const std::int64_t n = call.in_shape(0).num_elements();
  const bool wide = is_aligned(call.in(0), call.in(1), call.out(0));
  launch(call, wide ? moving_average_kernel<4> : moving_average_kernel<1>,
         grid_size(ceil_div(n, kThreads * (wide ? 4 : 1))), kThreads, 0, call.in(0), call.in(1), call.in(2),
         call.in(3), call.get<ops::MovingAverage>(), n, call.out(0));
}

}  // namespace
}  // namespace cuda

void register_cuda_optimizer(KernelTable& table);
void register_cuda_optimizer(KernelTable& table) {
  table.add("sum_of_squares", DType::f32, DeviceKind::cuda,
            {.run = cuda::run_sum_of_squares, .workspace = cuda::sum_of_squares_workspace});
  table.add("find_fault", DType::f32, DeviceKind::cuda, {.run = cuda::run_find_fault});
  table.add("clip_factor", DType::f64, DeviceKind::cuda, {.run = cuda::run_clip_factor});
  table.add("adamw", DType::f32, DeviceKind::cuda, {.run = cuda::run_adamw});
  table.add("moving_average", DType::f32, DeviceKind::cuda, {.run = cuda::run_moving_average});
}

}  // namespace farskip
