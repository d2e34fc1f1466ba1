// SPDX-License-Identifier: Apache-2.0
// The order in which routed rows stand, and rows and values moved into and out of it.
#include "backend/cuda/copy_rows.cuh"
#include "backend/cuda/counting_sort.cuh"
#include "backend/cuda/experts/combine_rows.cuh"
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

// y[R, H], row_slot[R], slot_row[R] → [T, H]
void run_combine_rows(const KernelCall& call) {
  combine_rows(call, call.in<std::int32_t>(2), call.get<ops::TopK>().top_k);
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
  }
}

}  // namespace farskip
