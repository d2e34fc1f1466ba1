// Routed rows to the ranks of their experts and back. What travels are slabs of fixed size, one for each
// peer, since a recorded run cannot change what it sends; the counts that say how much of a slab is there
// travel beside them. The own slab goes nowhere.
#include "backend/cuda/copy_rows.cuh"
#include "farskip/ops/ops.h"
#include "farskip/schedule/memory.h"

namespace farskip {
namespace cuda {
namespace {

/// Where rows stand: in the order of experts, rank by rank, and in slabs.
struct Slabs {
  const std::int32_t* offsets;  // [peers * groups + 1], in the order of experts
  int peers, groups, rank;
  std::int64_t max_rows;
};

/// The slab row of row `row`; -1 where it did not fit.
__device__ __forceinline__ std::int64_t slab_row(const Slabs& s, std::int64_t row, int& peer) {
  int low = 0, high = s.peers;  // offsets[low * groups] <= row < offsets[high * groups]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (s.offsets[middle * s.groups] <= row ? low : high) = middle;
  }
  peer = low;
  const std::int64_t in_slab = row - s.offsets[low * s.groups];
  return in_slab < s.max_rows ? low * s.max_rows + in_slab : -1;
}

/// 2^log_threads threads a row, width in words. to_slabs: rows → slabs, else slabs → rows, with zeros for
/// rows that did not fit. Those of this rank are in `own`, which has the slabs' form.
template <class Word, bool to_slabs>
__global__ void __launch_bounds__(kThreads)
    move_rows_kernel(Slabs s, Word* rows, Word* slabs, Word* own, std::int64_t width, int log_threads) {
  const int threads = 1 << log_threads, lane = static_cast<int>(threadIdx.x) & (threads - 1);
  const std::int64_t row =
      (static_cast<std::int64_t>(blockIdx.x) << (8 - log_threads)) + (threadIdx.x >> log_threads);
  if (row >= s.offsets[s.peers * s.groups]) return;
  int peer;
  const std::int64_t at = slab_row(s, row, peer);
  Word* const in_rows = rows + row * width;
  Word* const in_slab = (peer == s.rank ? own : slabs) + at * width;
  if (at < 0) {
    if (!to_slabs)
      for (std::int64_t i = lane; i < width; i += threads) in_rows[i] = Word{};
    return;
  }
  copy_row<Word>(to_slabs ? in_rows : in_slab, to_slabs ? in_slab : in_rows, width, lane, threads);
}

template <class Word>
void move_rows_as(const KernelCall& call, bool to_slabs, const Slabs& s, void* rows, void* slabs, void* own,
                  std::int64_t num_rows, std::int64_t row_bytes) {
  const std::int64_t width = row_bytes / static_cast<std::int64_t>(sizeof(Word));
  const int log_threads = log_threads_of(width);
  launch(call, to_slabs ? move_rows_kernel<Word, true> : move_rows_kernel<Word, false>,
         grid_size(ceil_div(num_rows, kThreads >> log_threads)), kThreads, 0, s, static_cast<Word*>(rows),
         static_cast<Word*>(slabs), static_cast<Word*>(own), width, log_threads);
}

/// Counts that go to each peer's groups, cut to what its slab holds; the own ones stay here. One block.
__global__ void __launch_bounds__(kThreads)
    count_rows_kernel(Slabs s, std::int32_t* counts, std::int32_t* own, std::int32_t* overflow) {
  __shared__ int too_many;
  if (threadIdx.x == 0) too_many = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < s.peers * s.groups; i += kThreads) {
    const int peer = i / s.groups;
    const std::int64_t first = s.offsets[peer * s.groups];
    const std::int64_t begin = s.offsets[i] - first, end = s.offsets[i + 1] - first;
    if (end > s.max_rows) too_many = 1;
    (peer == s.rank ? own : counts)[i] =
        static_cast<std::int32_t>(min(end, s.max_rows) - min(begin, s.max_rows));
  }
  __syncthreads();
  if (threadIdx.x == 0) *overflow = too_many;
}

std::int64_t row_bytes(const TensorView& rows) {
  return row_size(rows.shape) * static_cast<std::int64_t>(dtype_size(rows.dtype));
}

Slabs slabs_of(const KernelCall& call, std::size_t offsets) {
  const auto& a = call.get<ops::RowExchange>();
  return {call.in<std::int32_t>(offsets), static_cast<int>(a.peers), static_cast<int>(a.groups),
          call.group->rank(), a.max_rows};
}

void move_rows(const KernelCall& call, bool to_slabs, const Slabs& s, const TensorView& rows, void* slabs,
               void* own) {
  const std::int64_t bytes = row_bytes(rows), num_rows = rows.shape[0];
  if (bytes % 16 == 0 &&
      is_aligned(rows.as<std::byte>(), static_cast<std::byte*>(slabs), static_cast<std::byte*>(own)))
    move_rows_as<uint4>(call, to_slabs, s, rows.data, slabs, own, num_rows, bytes);
  else if (bytes % 4 == 0)
    move_rows_as<unsigned>(call, to_slabs, s, rows.data, slabs, own, num_rows, bytes);
  else
    move_rows_as<unsigned short>(call, to_slabs, s, rows.data, slabs, own, num_rows, bytes);
}

/// One transfer of slabs a peer: from `send` to `receive`, both [peers, bytes].
void add_slabs(std::vector<PeerTransfer>& transfers, const DeviceCommunicator& group, const void* send,
               void* receive, std::int64_t bytes) {
  for (int p = 0; p < group.size(); ++p) {
    if (p == group.rank()) continue;
    const auto size = static_cast<std::size_t>(bytes);
    transfers.push_back({p, static_cast<const std::byte*>(send) + p * bytes, size,
                         static_cast<std::byte*>(receive) + p * bytes, size});
  }
}

// ---- exchange_rows: rows[R, H], offsets[P*G+1] → slabs[P*max_rows, H], counts[P*G], overflow[1]

/// Slabs to send, then their counts.
std::size_t exchange_workspace(const OpTypes& types) {
  return aligned(types.outputs[0].num_bytes()) + aligned(types.outputs[1].num_bytes());
}
std::int32_t* counts_to_send(const KernelCall& call) {
  return reinterpret_cast<std::int32_t*>(call.workspace.data() + aligned(call.outputs[0].num_bytes()));
}

void pack_exchange(const KernelCall& call) {
  const Slabs s = slabs_of(call, 1);
  launch(call, count_rows_kernel, 1, kThreads, 0, s, counts_to_send(call), call.out<std::int32_t>(1),
         call.out<std::int32_t>(2));
  move_rows(call, true, s, call.inputs[0], call.workspace.data(), call.outputs[0].data);
}

void transport_exchange(const KernelCall& call) {
  const auto& a = call.get<ops::RowExchange>();
  std::vector<PeerTransfer> transfers;
  add_slabs(transfers, *call.group, call.workspace.data(), call.outputs[0].data,
            a.max_rows * row_bytes(call.outputs[0]));
  add_slabs(transfers, *call.group, counts_to_send(call), call.outputs[1].data,
            a.groups * static_cast<std::int64_t>(sizeof(std::int32_t)));
  call.group->transfer(transfers, call.gpu->stream);
}

// ---- return_rows: slabs[P*max_rows, H], counts, offsets → rows[R, H]

std::size_t return_workspace(const OpTypes& types) {
  return types.in(0).num_bytes();
}

void transport_return(const KernelCall& call) {
  std::vector<PeerTransfer> transfers;
  add_slabs(transfers, *call.group, call.inputs[0].data, call.workspace.data(),
            call.get<ops::RowExchange>().max_rows * row_bytes(call.inputs[0]));
  call.group->transfer(transfers, call.gpu->stream);
}

void unpack_return(const KernelCall& call) {
  move_rows(call, false, slabs_of(call, 2), call.outputs[0], call.workspace.data(), call.inputs[0].data);
}

}  // namespace
}  // namespace cuda

void register_cuda_exchange(KernelTable& table);
void register_cuda_exchange(KernelTable& table) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    table.add("exchange_rows", dtype, DeviceKind::cuda,
              {.run = cuda::pack_exchange,
               .workspace = cuda::exchange_workspace,
               .transport = cuda::transport_exchange});
    table.add("return_rows", dtype, DeviceKind::cuda,
              {.workspace = cuda::return_workspace,
               .finish = cuda::unpack_return,
               .transport = cuda::transport_return});
  }
}

}  // namespace farskip
