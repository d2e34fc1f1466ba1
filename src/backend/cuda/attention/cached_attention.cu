// SPDX-License-Identifier: Apache-2.0
// op "cached_attention": tensor cores for bf16 and the head sizes of models (cached_attention.h), a plain
// kernel for all else.
#include "backend/cached_attention_sizes.h"
#include "backend/cuda/attention/cached_attention_tiles.cuh"

namespace farskip {
namespace cuda {
namespace {

CachedAttentionLayout layout_of(const OpTypes& types) {
  const auto& a = types.get<ops::CachedAttention>();
  return lay_out_cached_attention(a, types.shape(0)[0], types.shape(0)[1], !types.has(5),
                                  types.shape(4)[1] * a.block_tokens);
}

CachedAttentionLayout layout_of(const KernelCall& call) {
  const auto& a = call.get<ops::CachedAttention>();
  return lay_out_cached_attention(a, call.in_shape(0)[0], call.in_shape(0)[1], !call.has(5),
                                  call.in_shape(4)[1] * a.block_tokens);
}

// ---- tensor cores --------------------------------------------------------------------------------

/// One thread four columns of a row of the result: parts of the keys are weighted by their largest scores and
/// sums.
__global__ void __launch_bounds__(kThreads)
    combine_parts_kernel(const float* partial, const float2* stats, const std::int32_t* positions, bf16* out,
                         std::int64_t rows, int heads, int dv, int splits) {
  const std::int64_t item = std::int64_t(blockIdx.x) * kThreads + threadIdx.x, row = item / (dv / 4);
  if (row >= rows) return;
  const int column = int(item % (dv / 4)) * 4;
  float sums[4] = {}, sum = 1.0F;
  if (positions[row / heads] >= 0) {
    float largest = -INFINITY;
    for (int s = 0; s < splits; ++s) largest = fmaxf(largest, stats[s * rows + row].x);
    sum = 0.0F;
#pragma unroll 4
    for (int s = 0; s < splits; ++s) {
      const float2 of_part = stats[s * rows + row];
      float values[4] = {};
      if (of_part.y > 0.0F) load<4>(partial + (s * rows + row) * dv + column, values);
      const float weight = exp2f(of_part.x - largest);
      sum += of_part.y * weight;
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i] += values[i] * weight;
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) out[row * dv + column + i] = __float2bfloat16_rn(sums[i] / sum);
}

template <class S, bool kOfToken>
void launch_tiles(const KernelCall& call, const CachedAttentionLayout& l, cached::Arguments a) {
  const auto kernel = cached::attend_kernel<S, kOfToken>;
  constexpr std::size_t kBytes = sizeof(cached::Shared<S>);
  static_assert(kBytes <= 227 << 10);
  FARSKIP_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(kBytes)));
  a.least_rows = !kOfToken && l.has_small() ? kSmallRows : 0;
  launch(call, kernel,
         dim3(grid_size(kOfToken ? l.tokens : l.tiles()), grid_size(l.kv_heads * l.head_parts),
              grid_size(l.splits)),
         S::kThreads, kBytes, a);
}

/// Small: tiles of kSmallRows rows; large: of kLargeRows.
template <class Small, class Large>
void run_tiles(const KernelCall& call, const CachedAttentionLayout& l, const cached::Arguments& a) {
  static_assert(Small::kRows == kSmallRows && Large::kRows == kLargeRows);
  if (l.has_small()) launch_tiles<Small, true>(call, l, a);
  if (l.has_large()) launch_tiles<Large, false>(call, l, a);
}

void run_on_tensor_cores(const KernelCall& call, const CachedAttentionLayout& l) {
  using cached::TileShape;
  const CachedAttentionSizes s = cached_attention_sizes(call);
  FARSKIP_CHECK(call.workspace.size() >= l.workspace_bytes(), "workspace of {} bytes", call.workspace.size());
  const std::int64_t rows = l.tokens * l.heads;
  auto* partial = l.splits > 1 ? reinterpret_cast<float*>(call.workspace.data()) : nullptr;
  auto* stats = reinterpret_cast<float2*>(partial + (l.splits > 1 ? l.splits * rows * l.dv : 0));
  const cached::Arguments a{.q = call.in<bf16>(0),
                            .keys = call.in<bf16>(1),
                            .values = call.has(5) ? call.in<bf16>(5) : nullptr,
                            .out = call.out<bf16>(0),
                            .partial = partial,
                            .stats = stats,
                            .sequences = s.sequences,
                            .positions = s.positions,
                            .table = s.table,
                            .tokens = int(l.tokens),
                            .heads = int(l.heads),
                            .kv_heads = int(l.kv_heads),
                            .group = int(l.group),
                            .tile_tokens = int(l.tile_tokens),
                            .head_parts = int(l.head_parts),
                            .chunk = int(s.chunk),
                            .block_tokens = int(s.block_tokens),
                            .max_blocks = int(s.max_blocks),
                            .splits = int(l.splits),
                            .least_rows = 0,
                            .scale = s.scale * 1.44269504F};
  if (l.d == 64)
    run_tiles<TileShape<1, 4, 64, 64, 64, false>, TileShape<4, 2, 64, 64, 64, false>>(call, l, a);
  else if (l.d == 128)
    run_tiles<TileShape<1, 4, 64, 128, 128, false>, TileShape<4, 2, 64, 128, 128, false>>(call, l, a);
  else if (l.d == 544)
    run_tiles<TileShape<1, 4, 32, 544, 512, true>, TileShape<4, 2, 32, 544, 512, true>>(call, l, a);
  else
    run_tiles<TileShape<1, 4, 32, 576, 512, true>, TileShape<4, 2, 32, 576, 512, true>>(call, l, a);
  if (l.splits > 1)
    launch(call, combine_parts_kernel, grid_size(ceil_div(rows * l.dv / 4, kThreads)), kThreads, 0, partial,
           stats, s.positions, a.out, rows, l.heads, l.dv, l.splits);
}

// ---- all else ------------------------------------------------------------------------------------

/// One block a query; its warps take keys in turn. Shared memory: the query [d], then of each warp the sums
/// [dv].
template <class T>
__global__ void __launch_bounds__(kThreads)
    plain_kernel(CachedAttentionSizes s, const T* queries, const T* keys, const T* values, T* out) {
  extern __shared__ float memory[];
  __shared__ float largest[kWarpsPerBlock], sums[kWarpsPerBlock];
  const std::int64_t token = blockIdx.x / s.heads, head = blockIdx.x % s.heads,
                     kv_head = head / s.heads_per_kv();
  const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, d = int(s.d), dv = int(s.dv);
  float *const q = memory, *const of_warp = memory + d + warp * dv;
  for (int i = int(threadIdx.x); i < d; i += kThreads)
    q[i] = to_float(queries[(token * s.heads + head) * d + i]) * s.scale;
  for (int i = lane; i < dv; i += 32) of_warp[i] = 0.0F;
  __syncthreads();
  float top = -INFINITY, sum = 0.0F;
  for (std::int64_t p = s.first_key(token) + warp; p <= s.position(token); p += kWarpsPerBlock) {
    const std::int64_t row = s.row(token, p);
    const T* key = keys + row * s.key_width + kv_head * d;
    float score = 0.0F;
    for (int i = lane; i < d; i += 32) score += q[i] * to_float(key[i]);
    score = warp_sum(score);
    const float now_top = fmaxf(top, score), factor = expf(top - now_top), weight = expf(score - now_top);
    const T* value = values + row * s.value_width + kv_head * dv;
    for (int i = lane; i < dv; i += 32) of_warp[i] = of_warp[i] * factor + weight * to_float(value[i]);
    sum = sum * factor + weight;
    top = now_top;
  }
  if (lane == 0) {
    largest[warp] = top;
    sums[warp] = sum;
  }
  __syncthreads();
  float all_top = -INFINITY, all_sum = 0.0F;
  for (const float x : largest) all_top = fmaxf(all_top, x);
  const bool exists = all_top != -INFINITY;  // the token has a position
  for (int w = 0; exists && w < kWarpsPerBlock; ++w) all_sum += sums[w] * expf(largest[w] - all_top);
  for (int i = int(threadIdx.x); i < dv; i += kThreads) {
    float value = 0.0F;
    for (int w = 0; exists && w < kWarpsPerBlock; ++w)
      value += memory[d + w * dv + i] * expf(largest[w] - all_top);
    store_one(out + (token * s.heads + head) * dv + i, exists ? value / all_sum : 0.0F);
  }
}

template <class T>
void run_plain(const KernelCall& call) {
  const CachedAttentionSizes s = cached_attention_sizes(call);
  const std::int64_t bytes = (s.d + kWarpsPerBlock * s.dv) * 4;
  FARSKIP_CHECK(bytes <= 47 << 10, "{} bytes of shared memory for heads of {} and {}", bytes, s.d, s.dv);
  launch(call, plain_kernel<T>, grid_size(s.tokens * s.heads), kThreads, static_cast<std::size_t>(bytes), s,
         call.in<T>(0), call.in<T>(1), call.has(5) ? call.in<T>(5) : call.in<T>(1), call.out<T>(0));
}

// q, keys, sequences, positions, table, [values] → [T, A*Dv]
void run_cached_attention(const KernelCall& call) {
  const CachedAttentionLayout l = layout_of(call);
  const bool low = call.inputs[0].dtype == DType::bf16;
  if (low && l.fits() &&
      is_aligned(call.inputs[0].data, call.inputs[1].data, call.has(5) ? call.inputs[5].data : nullptr,
                 call.outputs[0].data))
    return run_on_tensor_cores(call, l);
  with_element_type(call.inputs[0].dtype, [&](auto element) { run_plain<decltype(element)>(call); });
}

std::size_t cached_attention_workspace(const OpTypes& types) {
  const CachedAttentionLayout l = layout_of(types);
  return types.in(0).dtype == DType::bf16 && l.fits() ? l.workspace_bytes() : 0;
}

}  // namespace
}  // namespace cuda

void register_cuda_cached_attention(KernelTable& table);

void register_cuda_cached_attention(KernelTable& table) {
  for (const DType dtype : {DType::f32, DType::bf16})
    table.add("cached_attention", dtype, DeviceKind::cuda,
              {.run = cuda::run_cached_attention, .workspace = cuda::cached_attention_workspace});
}

}  // namespace farskip
