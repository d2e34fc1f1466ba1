// SPDX-License-Identifier: Apache-2.0
// The order in which routed rows stand, and rows and values moved into and out of it.
#include "backend/cuda/copy_rows.cuh"
#include "backend/cuda/counting_sort.cuh"
#include "farskip/ops/ops.h"

namespace farskip {
namespace cuda {
namespace {

struct SlotsByExpert {
  const std::int32_t* indices;
  std::int32_t *row_slot, *slot_row, *offsets;

  __device__ int key(std::int64_t slot) const { return indices[slot]; }
  __device__ void place(std::int64_t slot, std::int32_t row) const {
    row_slot[row] = static_cast<std::int32_t>(slot);
    slot_row[slot] = row;
  }
  __device__ void offset(int expert, std::int32_t row) const { offsets[expert] = row; }
};

std::size_t sort_workspace(const OpTypes& types) {
  return CountingSort(types.shape(0).num_elements(), types.get<ops::SortByExpert>().num_experts)
      .workspace_bytes();
}

// indices[T, K] → row_slot[R], slot_row[R], offsets[E+1]
void run_sort_by_expert(const KernelCall& call) {
  const CountingSort sort(call.in_shape(0).num_elements(), call.get<ops::SortByExpert>().num_experts);
  sort_by_counting(call,
                   SlotsByExpert{call.in<std::int32_t>(0), call.out<std::int32_t>(0),
                                 call.out<std::int32_t>(1), call.out<std::int32_t>(2)},
                   sort, call.workspace.data());
}

// x[T, H], row_slot[R], slot_row[R] → [R, H]
void run_dispatch_rows(const KernelCall& call) {
  const TensorView &x = call.inputs[0], &out = call.outputs[0];
  const std::int64_t hidden = x.shape[1], rows = out.shape[0];
  copy_rows(call, {.from = {.base = x.data,
                            .stride = hidden,
                            .index = call.in<std::int32_t>(1),
                            .divisor = static_cast<std::int32_t>(call.get<ops::TopK>().top_k),
                            .limit = static_cast<std::int32_t>(x.shape[0] * call.get<ops::TopK>().top_k)},
                   .to = {.base = out.data, .stride = hidden},
                   .rows = rows,
                   .width = hidden,
                   .element_bytes = dtype_size(x.dtype),
                   .count = input_count(call, 1)});
}

/// out[t] = Σ_k y[slot_row[t*K + k]], in order of k, in f32; a row of -1 counts as 0. One warp a token.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    combine_rows_kernel(const T* y, const std::int32_t* slot_row, T* out, std::int64_t tokens,
                        std::int64_t hidden, int top_k) {
  const std::int64_t token = warp_row();
  if (token >= tokens) return;
  const std::int32_t* rows = slot_row + token * top_k;
  constexpr int ahead = 4;  // rows loaded at once; they are added in order
  for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x % 32) * N; i < hidden; i += 32 * N) {
    float sum[N] = {};
    for (int first = 0; first < top_k; first += ahead) {
      Pack<T, N> packs[ahead];
#pragma unroll
      for (int k = 0; k < ahead; ++k)
        if (first + k < top_k && rows[first + k] >= 0)
          packs[k] = Pack<T, N>::load(y + rows[first + k] * hidden + i);
#pragma unroll
      for (int k = 0; k < ahead; ++k) {
        if (first + k >= top_k || rows[first + k] < 0) continue;
        float row[N];
        packs[k].unpack(row);
#pragma unroll
        for (int j = 0; j < N; ++j) sum[j] += row[j];
      }
    }
    store<N>(out + token * hidden + i, sum);
  }
}

/// y[…, H], where in y each slot is [R] → [T, H]
void combine(const KernelCall& call, const std::int32_t* slot_row, std::int64_t top_k) {
  with_element_type(call.inputs[0].dtype, [&](auto element) {
    using T = decltype(element);
    const std::int64_t tokens = call.out_shape(0)[0], hidden = call.out_shape(0)[1];
    const bool wide = hidden % 8 == 0 && is_aligned(call.in<T>(0), call.out<T>(0));
    launch(call, wide ? combine_rows_kernel<T, 8> : combine_rows_kernel<T, 1>, warp_row_grid(tokens),
           kThreads, 0, call.in<T>(0), slot_row, call.out<T>(0), tokens, hidden, static_cast<int>(top_k));
  });
}

// y[R, H], row_slot[R], slot_row[R] → [T, H]
void run_combine_rows(const KernelCall& call) {
  combine(call, call.in<std::int32_t>(2), call.get<ops::TopK>().top_k);
}

// x[T, H] (or R values), places[R] → slabs
void run_put_into_slabs(const KernelCall& call) {
  const TensorView &x = call.inputs[0], &slabs = call.outputs[0];
  const auto& a = call.get<ops::SlabRows>();
  const std::int64_t width = row_size(slabs.shape);
  copy_rows(call, {.from = {.base = x.data,
                            .stride = width,
                            .divisor = static_cast<std::int32_t>(std::max<std::int64_t>(a.top_k, 1))},
                   .to = {.base = slabs.data,
                          .stride = width,
                          .index = call.in<std::int32_t>(1),
                          .limit = static_cast<std::int32_t>(a.rows),
                          .may_miss = true},
                   .rows = call.in_shape(1)[0],
                   .width = width,
                   .element_bytes = dtype_size(x.dtype)});
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    take_values_kernel(const T* slabs, const std::int32_t* places, T* out, std::int64_t slots) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < slots) out[i] = places[i] < 0 ? T(0.0F) : slabs[places[i]];
}

// slabs, places[R] → [T, H] (or R values)
void run_take_from_slabs(const KernelCall& call) {
  const auto* places = call.in<std::int32_t>(1);
  const std::int64_t slots = call.in_shape(1)[0];
  if (slots == 0) return;
  if (const std::int64_t top_k = call.get<ops::SlabRows>().top_k; top_k > 0)
    return combine(call, places, top_k);
  with_element_type(call.inputs[0].dtype, [&](auto element) {
    using T = decltype(element);
    launch(call, take_values_kernel<T>, grid_size(ceil_div(slots, kThreads)), kThreads, 0, call.in<T>(0),
           places, call.out<T>(0), slots);
  });
}

__global__ void __launch_bounds__(kThreads)
    permute_values_kernel(const float* values, const std::int32_t* index, float* out, std::int64_t n,
                          const std::int32_t* count) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= actual_rows(n, count)) return;
  const std::int32_t at = index[i];
  if (at < -1 || at >= n) __trap();
  out[i] = at < 0 ? 0.0F : values[at];
}

// values, index[R] (-1: 0), inverse[R] → out[i] = values[index[i]]
void run_permute_values(const KernelCall& call) {
  const std::int64_t n = call.out_shape(0).num_elements();
  if (n == 0) return;
  launch(call, permute_values_kernel, grid_size(ceil_div(n, kThreads)), kThreads, 0, call.in(0),
         call.in<std::int32_t>(1), call.out(0), n, input_count(call, 1));
}

/// One thread a slot; the first ones also an expert.
__global__ void __launch_bounds__(kThreads)
    own_experts_kernel(const std::int32_t* row_slot, const std::int32_t* slot_row,
                       const std::int32_t* offsets, std::int32_t* own_slot, std::int32_t* own_row,
                       std::int32_t* own_offsets, std::int32_t* num_rows, std::int64_t slots, int experts) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int32_t first = offsets[0], end = offsets[experts];
  if (i <= experts) own_offsets[i] = offsets[i] - first;
  if (i == 0) num_rows[0] = end - first;
  if (i >= slots) return;
  own_row[i] = slot_row[i] >= first && slot_row[i] < end ? slot_row[i] - first : -1;
  if (i < end - first) own_slot[i] = row_slot[first + i];
}

// row_slot[R], slot_row[R], offsets[E+1] → those of some experts alone, and the number of their rows
void run_own_experts(const KernelCall& call) {
  const auto& a = call.get<ops::OwnExperts>();
  const std::int64_t slots = call.in_shape(1)[0], threads = std::max(slots, a.count + 1);
  launch(call, own_experts_kernel, grid_size(ceil_div(threads, kThreads)), kThreads, 0,
         call.in<std::int32_t>(0), call.in<std::int32_t>(1), call.in<std::int32_t>(2) + a.first,
         call.out<std::int32_t>(0), call.out<std::int32_t>(1), call.out<std::int32_t>(2),
         call.out<std::int32_t>(3), slots, static_cast<int>(a.count));
}

}  // namespace
}  // namespace cuda

void register_cuda_dispatch(KernelTable& table);
void register_cuda_dispatch(KernelTable& table) {
  table.add("sort_by_expert", DType::i32, DeviceKind::cuda,
            {.run = cuda::run_sort_by_expert, .workspace = cuda::sort_workspace});
  table.add("own_experts", DType::i32, DeviceKind::cuda, {.run = cuda::run_own_experts});
  table.add("permute_values", DType::f32, DeviceKind::cuda, {.run = cuda::run_permute_values});
  for (const DType dtype : {DType::f32, DType::bf16}) {
    table.add("dispatch_rows", dtype, DeviceKind::cuda, {.run = cuda::run_dispatch_rows});
    table.add("combine_rows", dtype, DeviceKind::cuda, {.run = cuda::run_combine_rows});
    table.add("put_into_slabs", dtype, DeviceKind::cuda, {.run = cuda::run_put_into_slabs});
    table.add("take_from_slabs", dtype, DeviceKind::cuda, {.run = cuda::run_take_from_slabs});
  }
}

}  // namespace farskip
