// SPDX-License-Identifier: Apache-2.0
// Routed rows of several ranks, put into the order of this rank's experts and back. (What travels between
// ranks is not here.)
#include "backend/cuda/copy_rows.cuh"
#include "ops/collective_ops.h"

namespace farskip {
namespace cuda {
namespace {

/// One block for each (expert g, peer p), which owns the rows [start, start + counts[p, g]) of the order:
/// start is the number of rows of lower experts, and of this expert from lower peers.
__global__ void __launch_bounds__(kThreads)
    order_by_expert_kernel(const std::int32_t* counts, std::int32_t* source, std::int32_t* offsets,
                           std::int32_t* num_rows, int peers, int groups, std::int64_t max_rows) {
  __shared__ int shared[kWarpsPerBlock];
  const int group = static_cast<int>(blockIdx.x) / peers, peer = static_cast<int>(blockIdx.x) % peers;
  int before = 0, of_slab = 0;  // rows before in the order; rows before in the peer's slab
  for (int i = threadIdx.x; i < peers * groups; i += kThreads) {
    const int p = i / groups, g = i % groups, count = counts[i];
    if (g < group || (g == group && p < peer)) before += count;
    if (p == peer && g < group) of_slab += count;
  }
  before = block_sum<kThreads>(before, shared);
  of_slab = block_sum<kThreads>(of_slab, shared);
  const int count = counts[peer * groups + group];
  if (of_slab + count > max_rows) __trap();
  for (int i = threadIdx.x; i < count; i += kThreads)
    source[before + i] = static_cast<std::int32_t>(peer * max_rows + of_slab + i);
  if (threadIdx.x != 0) return;
  if (peer == 0) offsets[group] = before;
  if (peer == peers - 1 && group == groups - 1) offsets[groups] = *num_rows = before + count;
}

// counts[P*G] → source[P*max_rows], offsets[G+1], num_rows[1]
void run_order_by_expert(const KernelCall& call) {
  const auto& a = call.get<ops::RowExchange>();
  launch(call, order_by_expert_kernel, grid_size(a.peers * a.groups), kThreads, 0, call.in<std::int32_t>(0),
         call.out<std::int32_t>(0), call.out<std::int32_t>(1), call.out<std::int32_t>(2), a.peers, a.groups,
         a.max_rows);
}

/// Rows of input 0 and output 0 that belong together, one of them found through source[M] (input 1).
void copy_by_source(const KernelCall& call, bool gather) {
  const std::int64_t width = row_size(call.in_shape(0));
  RowPlace by_source{.stride = width, .index = call.in<std::int32_t>(1)}, in_order{.stride = width};
  RowPlace &from = gather ? by_source : in_order, &to = gather ? in_order : by_source;
  from.base = call.inputs[0].data;
  to.base = call.outputs[0].data;
  by_source.limit = static_cast<std::int32_t>(gather ? call.in_shape(0)[0] : call.out_shape(0)[0]);
  copy_rows(call, {.from = from,
                   .to = to,
                   .rows = call.in_shape(1)[0],
                   .width = width,
                   .element_bytes = dtype_size(call.inputs[0].dtype),
                   .count = input_count(call, 1)});
}

// x[N, H], source[M] → [M, H]
void run_gather_rows(const KernelCall& call) {
  copy_by_source(call, true);
}

// y[M, H], source[M] → [N, H]
void run_scatter_rows(const KernelCall& call) {
  copy_by_source(call, false);
}

}  // namespace
}  // namespace cuda

void register_cuda_routed_rows(KernelTable& table);
void register_cuda_routed_rows(KernelTable& table) {
  table.add("order_by_expert", DType::i32, DeviceKind::cuda, {.run = cuda::run_order_by_expert});
  for (const DType dtype : {DType::f32, DType::bf16}) {
    table.add("gather_rows", dtype, DeviceKind::cuda, {.run = cuda::run_gather_rows});
    table.add("scatter_rows", dtype, DeviceKind::cuda, {.run = cuda::run_scatter_rows});
  }
}

}  // namespace farskip
