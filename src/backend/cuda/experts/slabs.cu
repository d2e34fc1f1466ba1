// SPDX-License-Identifier: Apache-2.0
// Routed rows to the ranks of their experts and back. What travels are slabs of fixed size, one for each
// peer, since a recorded run cannot change what it sends; the counts that say how much of a slab is there
// travel beside them.
#include "backend/cuda/copy_rows.cuh"
#include "backend/cuda/experts/combine_rows.cuh"
#include "farskip/comm/device_communicator.h"
#include "ops/collective_ops.h"

namespace farskip {
namespace cuda {
namespace {

/// The slab row of each slot; -1 where it does not fit.
__global__ void __launch_bounds__(kThreads)
    slab_places_kernel(const std::int32_t* slot_row, const std::int32_t* offsets, std::int32_t* places,
                       std::int64_t slots, int peers, int groups, std::int64_t max_rows) {
  const std::int64_t slot = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (slot >= slots) return;
  const std::int32_t row = slot_row[slot];
  int low = 0, high = peers;  // offsets[low * groups] <= row < offsets[high * groups]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (offsets[middle * groups] <= row ? low : high) = middle;
  }
  const std::int64_t in_slab = row - offsets[low * groups];
  places[slot] = in_slab < max_rows ? static_cast<std::int32_t>(low * max_rows + in_slab) : -1;
}

/// Rows for each peer's groups, cut to what its slab holds. One block.
__global__ void __launch_bounds__(kThreads)
    count_rows_kernel(const std::int32_t* offsets, std::int32_t* counts, std::int32_t* overflow, int peers,
                      int groups, std::int64_t max_rows) {
  __shared__ int too_many;
  if (threadIdx.x == 0) too_many = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < peers * groups; i += kThreads) {
    const std::int64_t first = offsets[i / groups * groups];
    const std::int64_t begin = offsets[i] - first, end = offsets[i + 1] - first;
    if (end > max_rows) too_many = 1;
    counts[i] = static_cast<std::int32_t>(min(end, max_rows) - min(begin, max_rows));
  }
  __syncthreads();
  if (threadIdx.x == 0) *overflow = too_many;
}

// slot_row[R], offsets[E+1] → places[R], counts[P*G], overflow[1]
void run_slab_places(const KernelCall& call) {
  const auto& a = call.get<ops::RowExchange>();
  const auto peers = static_cast<int>(a.peers), groups = static_cast<int>(a.groups);
  const auto* offsets = call.in<std::int32_t>(1);
  launch(call, count_rows_kernel, 1, kThreads, 0, offsets, call.out<std::int32_t>(1),
         call.out<std::int32_t>(2), peers, groups, a.max_rows);
  if (a.rows == 0) return;
  launch(call, slab_places_kernel, grid_size(ceil_div(a.rows, kThreads)), kThreads, 0,
         call.in<std::int32_t>(0), offsets, call.out<std::int32_t>(0), a.rows, peers, groups, a.max_rows);
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
    return combine_rows(call, places, top_k);
  with_element_type(call.inputs[0].dtype, [&](auto element) {
    using T = decltype(element);
    launch(call, take_values_kernel<T>, grid_size(ceil_div(slots, kThreads)), kThreads, 0, call.in<T>(0),
           places, call.out<T>(0), slots);
  });
}

/// One transfer a peer, the own one too: from `send` to `receive`, both of as many equal parts as there are
/// ranks.
void add_parts(std::vector<PeerTransfer>& transfers, const DeviceCommunicator& group, const TensorView& send,
               const TensorView& receive) {
  const std::size_t bytes = send.num_bytes() / static_cast<std::size_t>(group.size());
  for (int p = 0; p < group.size(); ++p) {
    const std::size_t at = static_cast<std::size_t>(p) * bytes;
    transfers.push_back({p, send.as<std::byte>() + at, bytes, receive.as<std::byte>() + at, bytes});
  }
}

void transport_slabs(const KernelCall& call) {
  std::vector<PeerTransfer> transfers;
  for (std::size_t i = 0; i < call.inputs.size(); ++i)  // slabs, and counts where they are not known
    add_parts(transfers, *call.group, call.inputs[i], call.outputs[i]);
  call.group->transfer(transfers, call.gpu->stream);
}

}  // namespace
}  // namespace cuda

void register_cuda_slabs(KernelTable& table);
void register_cuda_slabs(KernelTable& table) {
  table.add("slab_places", DType::i32, DeviceKind::cuda, {.run = cuda::run_slab_places});
  for (const DType dtype : {DType::f32, DType::bf16}) {
    table.add("put_into_slabs", dtype, DeviceKind::cuda, {.run = cuda::run_put_into_slabs});
    table.add("take_from_slabs", dtype, DeviceKind::cuda, {.run = cuda::run_take_from_slabs});
    for (const char* op : {"exchange_slabs", "return_slabs"})
      table.add(op, dtype, DeviceKind::cuda, {.transport = cuda::transport_slabs});
  }
}

}  // namespace farskip
