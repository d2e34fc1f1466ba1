// SPDX-License-Identifier: Apache-2.0
// Root-mean-square norm over groups of D elements (a row, or a head of it).
#include "backend/cuda/dense/column_sums.cuh"
#include "backend/cuda/launch.cuh"
#include "farskip/ops/ops.h"

namespace farskip {
namespace cuda {
namespace {

/// One warp a group. A group of at most 32 * N * V elements stays in registers between the two passes (V = 0:
/// it is read twice).
template <class T, int N, int V>
__global__ void __launch_bounds__(kThreads)
    rms_norm_kernel(const T* x, const float* w, T* y, float* rstd, std::int64_t groups, std::int64_t size,
                    double eps, std::int64_t groups_per_row, const std::int32_t* count) {
  const std::int64_t group = warp_row();
  if (group >= groups || (count != nullptr && group >= groups_per_row * *count)) return;
  const T* in = x + group * size;
  T* out = y + group * size;
  const std::int64_t first = static_cast<std::int64_t>(threadIdx.x % 32) * N;
  Pack<T, N> kept[V > 0 ? V : 1];
  float sum = 0.0F;
  const auto add_squares = [&](const Pack<T, N>& pack) {
    float values[N];
    pack.unpack(values);
#pragma unroll
    for (int j = 0; j < N; ++j) sum += values[j] * values[j];
  };
  if constexpr (V > 0) {
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (first + v * 32 * N < size) kept[v] = Pack<T, N>::load(in + first + v * 32 * N);
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (first + v * 32 * N < size) add_squares(kept[v]);
  } else {
    for (std::int64_t i = first; i < size; i += 32 * N) add_squares(Pack<T, N>::load(in + i));
  }
  const double mean = static_cast<double>(warp_sum(sum)) / static_cast<double>(size);
  const auto scale = static_cast<float>(1.0 / sqrt(mean + eps));
  if (threadIdx.x % 32 == 0) rstd[group] = scale;
  const auto normalise = [&](const Pack<T, N>& pack, std::int64_t i) {
    float values[N], weights[N];
    pack.unpack(values);
    load<N>(w + i, weights);
#pragma unroll
    for (int j = 0; j < N; ++j) values[j] = values[j] * scale * weights[j];
    store<N>(out + i, values);
  };
  if constexpr (V > 0) {
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (first + v * 32 * N < size) normalise(kept[v], first + v * 32 * N);
  } else {
    for (std::int64_t i = first; i < size; i += 32 * N) normalise(Pack<T, N>::load(in + i), i);
  }
}

// x[T, N*D], w[D] → y[T, N*D], rstd[T, N]
void run_rms_norm(const KernelCall& call) {
  with_element_type(call.inputs[0].dtype, [&](auto element) {
    using T = decltype(element);
    const std::int64_t size = call.in_shape(1).num_elements(), groups = call.out_shape(1).num_elements();
    if (groups == 0) return;
    auto kernel = rms_norm_kernel<T, 1, 0>;
    if (size % 8 == 0 && is_aligned(call.in<T>(0), call.in(1), call.out<T>(0)))
      kernel = size <= 512    ? rms_norm_kernel<T, 8, 2>
               : size <= 2048 ? rms_norm_kernel<T, 8, 8>
               : size <= 4096 ? rms_norm_kernel<T, 8, 16>
                              : rms_norm_kernel<T, 8, 0>;
    launch(call, kernel, warp_row_grid(groups), kThreads, 0, call.in<T>(0), call.in(1), call.out<T>(0),
           call.out(1), groups, size, call.get<ops::RmsNorm>().eps, call.out_shape(1)[1],
           input_count(call, 0));
  });
}

// ---- gradient: with g = dy·w: dx = rstd (g - x rstd² mean(g x)); dw = Σ over groups of dy x rstd. Either
// may be added to something.

constexpr int kRowsAtOnce = 4;  // most groups that a lane of threads works on between two reductions
constexpr std::int64_t kMostBlocks = 528;  // 4 on each of the 132 multiprocessors of an H100

/// How groups are shared out; by shapes alone, as the order of the sums of dw depends on it.
struct GradSplit {
  GradSplit(std::int64_t groups, std::int64_t size)
      : fast(size % 8 == 0 && size <= 8192),
        threads(size <= 256    ? 32
                : size <= 512  ? 64
                : size <= 1024 ? 128
                               : kThreads),
        lanes(kThreads / threads),
        groups_per_block(
            ceil_div(ceil_div(std::max<std::int64_t>(groups, 1), kMostBlocks), lanes * kRowsAtOnce) * lanes *
            kRowsAtOnce),
        blocks(ceil_div(groups, groups_per_block)),
        shares(blocks * lanes) {}
  bool fast;                      // dw of all columns of a group fits the registers of its threads
  int threads;                    // for one group
  std::int64_t lanes;             // groups that a block works on side by side
  std::int64_t groups_per_block;  // a multiple of lanes * kRowsAtOnce
  std::int64_t blocks, shares;
};

struct GradArguments {
  const void *dy, *x;
  const float *w, *rstd;
  const void* dx_before;  // may be nullptr
  void* dx;               // may be dy or dx_before
  float* shares;          // [shares, D]
  std::int64_t groups, size, groups_per_block, groups_per_row;
  const std::int32_t* count;
};

/// `Threads` threads a group, each with V vectors of N columns, for which they keep the share of dw.
template <class T, int V, int Threads>
__global__ void __launch_bounds__(kThreads) rms_norm_grad_kernel(GradArguments a) {
  constexpr int N = 8, lanes = kThreads / Threads, warps = Threads / 32, R = kRowsAtOnce / V;
  [[maybe_unused]] __shared__ float sums[2][R][kWarpsPerBlock];
  const int lane = static_cast<int>(threadIdx.x) / Threads, thread = static_cast<int>(threadIdx.x) % Threads;
  std::int64_t groups = a.groups;
  if (a.count != nullptr) groups = min(groups, a.groups_per_row * *a.count);
  const std::int64_t begin = blockIdx.x * a.groups_per_block, end = begin + a.groups_per_block;
  float share[V][N] = {}, w[V][N] = {};
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int column = (v * Threads + thread) * N;
    if (column < a.size) load<N>(a.w + column, w[v]);
  }
  int turn = 0;
  for (std::int64_t base = begin; base < end; base += lanes * R, turn ^= 1) {
    Pack<T, N> dy[R][V], x[R][V], before[R][V] = {};
    float scale[R], dot[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const std::int64_t group = base + r * lanes + lane;
      scale[r] = group < groups ? a.rstd[group] : 0.0F;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const int column = (v * Threads + thread) * N;
        if (group >= groups || column >= a.size) continue;
        dy[r][v] = Pack<T, N>::load(static_cast<const T*>(a.dy) + group * a.size + column);
        x[r][v] = Pack<T, N>::load(static_cast<const T*>(a.x) + group * a.size + column);
        if (a.dx_before != nullptr)
          before[r][v] = Pack<T, N>::load(static_cast<const T*>(a.dx_before) + group * a.size + column);
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      dot[r] = 0.0F;
      if (base + r * lanes + lane < groups) {
#pragma unroll
        for (int v = 0; v < V; ++v) {
          if ((v * Threads + thread) * N >= a.size) continue;
          float g[N], in[N];
          dy[r][v].unpack(g);
          x[r][v].unpack(in);
#pragma unroll
          for (int j = 0; j < N; ++j) {
            dot[r] += g[j] * w[v][j] * in[j];
            share[v][j] += g[j] * in[j] * scale[r];
          }
        }
      }
      dot[r] = warp_sum(dot[r]);
    }
    if constexpr (warps > 1) {
      // Two sets of sums take turns, so that one barrier is enough: nobody writes a set again before all have
      // passed the barrier of the other.
#pragma unroll
      for (int r = 0; r < R; ++r)
        if (threadIdx.x % 32 == 0) sums[turn][r][threadIdx.x / 32] = dot[r];
      __syncthreads();
#pragma unroll
      for (int r = 0; r < R; ++r) {
        dot[r] = sums[turn][r][lane * warps];
#pragma unroll
        for (int i = 1; i < warps; ++i) dot[r] += sums[turn][r][lane * warps + i];
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const std::int64_t group = base + r * lanes + lane;
      if (group >= groups) continue;
      const float along_x = dot[r] / static_cast<float>(a.size) * scale[r] * scale[r];
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const int column = (v * Threads + thread) * N;
        if (column >= a.size) continue;
        float g[N], in[N], sum[N];
        dy[r][v].unpack(g);
        x[r][v].unpack(in);
        before[r][v].unpack(sum);
#pragma unroll
        for (int j = 0; j < N; ++j) g[j] = sum[j] + scale[r] * (g[j] * w[v][j] - in[j] * along_x);
        store<N>(static_cast<T*>(a.dx) + group * a.size + column, g);
      }
    }
  }
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int column = (v * Threads + thread) * N;
    if (column < a.size)
      store<N>(a.shares + (static_cast<std::int64_t>(blockIdx.x) * lanes + lane) * a.size + column, share[v]);
  }
}

/// Any size and alignment, first part: the share of dw of a block's groups, one thread a column.
template <class T>
__global__ void __launch_bounds__(kThreads) norm_shares_kernel(GradArguments a) {
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  std::int64_t groups = a.groups;
  if (a.count != nullptr) groups = min(groups, a.groups_per_row * *a.count);
  const std::int64_t begin = blockIdx.x * a.groups_per_block;
  if (column >= a.size) return;
  float share = 0.0F;
  for (std::int64_t group = begin; group < min(groups, begin + a.groups_per_block); ++group) {
    const std::int64_t at = group * a.size + column;
    share +=
        to_float(static_cast<const T*>(a.dy)[at]) * to_float(static_cast<const T*>(a.x)[at]) * a.rstd[group];
  }
  a.shares[blockIdx.x * a.size + column] = share;
}

/// Second part: dx, one warp a group.
template <class T>
__global__ void __launch_bounds__(kThreads) norm_dx_kernel(GradArguments a) {
  const std::int64_t group = warp_row();
  if (group >= a.groups || (a.count != nullptr && group >= a.groups_per_row * *a.count)) return;
  const T *dy = static_cast<const T*>(a.dy) + group * a.size,
          *x = static_cast<const T*>(a.x) + group * a.size;
  T* dx = static_cast<T*>(a.dx) + group * a.size;
  float dot = 0.0F;
  for (std::int64_t i = threadIdx.x % 32; i < a.size; i += 32)
    dot += to_float(dy[i]) * a.w[i] * to_float(x[i]);
  dot = warp_sum(dot);
  const float scale = a.rstd[group], along_x = dot / static_cast<float>(a.size) * scale * scale;
  const T* before = a.dx_before == nullptr ? nullptr : static_cast<const T*>(a.dx_before) + group * a.size;
  for (std::int64_t i = threadIdx.x % 32; i < a.size; i += 32)
    store_one(dx + i, (before == nullptr ? 0.0F : to_float(before[i])) +
                          scale * (to_float(dy[i]) * a.w[i] - to_float(x[i]) * along_x));
}

std::size_t rms_norm_grad_workspace(const OpTypes& types) {
  const std::int64_t size = types.shape(2).num_elements(), groups = types.shape(3).num_elements();
  return static_cast<std::size_t>(GradSplit(groups, size).shares * size) * sizeof(float);
}

template <class T>
void differentiate(const KernelCall& call, const GradSplit& split, const GradArguments& a, bool fast) {
  if (fast) {
    const auto kernel = a.size <= 256    ? rms_norm_grad_kernel<T, 1, 32>
                        : a.size <= 512  ? rms_norm_grad_kernel<T, 1, 64>
                        : a.size <= 1024 ? rms_norm_grad_kernel<T, 1, 128>
                        : a.size <= 2048 ? rms_norm_grad_kernel<T, 1, kThreads>
                        : a.size <= 4096 ? rms_norm_grad_kernel<T, 2, kThreads>
                                         : rms_norm_grad_kernel<T, 4, kThreads>;
    return launch(call, kernel, grid_size(split.blocks), kThreads, 0, a);
  }
  // One share a block, in the order of the groups; the workspace has room for at least that many.
  launch(call, norm_shares_kernel<T>, dim3(grid_size(split.blocks), grid_size(ceil_div(a.size, kThreads))),
         kThreads, 0, a);
  launch(call, norm_dx_kernel<T>, warp_row_grid(a.groups), kThreads, 0, a);
}

// dy[T, N*D], x[T, N*D], w[D], rstd[T, N], [accumulate dw[D]], [accumulate dx] → dx, dw[D]
void run_rms_norm_grad(const KernelCall& call) {
  const std::int64_t size = call.in_shape(2).num_elements(), groups = call.in_shape(3).num_elements();
  const GradSplit split(groups, size);
  auto* shares = reinterpret_cast<float*>(call.workspace.data());
  const GradArguments a{.dy = call.inputs[0].data,
                        .x = call.inputs[1].data,
                        .w = call.in(2),
                        .rstd = call.in(3),
                        .dx_before = call.has(5) ? call.inputs[5].data : nullptr,
                        .dx = call.outputs[0].data,
                        .shares = shares,
                        .groups = groups,
                        .size = size,
                        .groups_per_block = split.groups_per_block,
                        .groups_per_row = call.in_shape(3)[1],
                        .count = input_count(call, 1)};
  const bool fast = split.fast && is_aligned(a.dy, a.x, a.w, a.dx_before, a.dx, a.shares);
  with_element_type(call.inputs[0].dtype, [&](auto element) {
    if (groups > 0) differentiate<decltype(element)>(call, split, a, fast);
  });
  sum_columns(call, shares, fast ? split.shares : split.blocks, size, call.has(4) ? call.in(4) : nullptr,
              call.out(1));
}

}  // namespace
}  // namespace cuda

void register_cuda_norm(KernelTable& table);
void register_cuda_norm(KernelTable& table) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    table.add("rms_norm", dtype, DeviceKind::cuda, {.run = cuda::run_rms_norm});
    table.add("rms_norm_grad", dtype, DeviceKind::cuda,
              {.run = cuda::run_rms_norm_grad, .workspace = cuda::rms_norm_grad_workspace});
  }
}

}  // namespace farskip
