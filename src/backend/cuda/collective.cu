// SPDX-License-Identifier: Apache-2.0
// Sums over replicas and the way back from shards. Every rank receives what it is to sum from all others and
// adds in rank order, so that the bits do not depend on a library's choice of algorithm. Several tensors are
// put together first, rank by rank, so that they cost one message a peer.
#include "backend/cuda/launch.cuh"
#include "farskip/comm/device_communicator.h"
#include "ops/collective_ops.h"
#include "tensor/alignment.h"

namespace farskip {
namespace cuda {
namespace {

/// sum[i] = Σ_p parts[p, i], in order of p; of bf16 in f32, rounded once.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_parts_kernel(const T* parts, T* sum, std::int64_t elements, int ranks) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < elements;
       i += step) {
    if constexpr (std::is_same_v<T, bf16>) {
      float total = to_float(parts[i]);
      for (int p = 1; p < ranks; ++p) total += to_float(parts[p * elements + i]);
      store_one(sum + i, total);
    } else {
      T total = parts[i];
      for (int p = 1; p < ranks; ++p) total += parts[p * elements + i];
      sum[i] = total;
    }
  }
}

template <class T>
void sum_parts(const KernelCall& call, const T* parts, T* sum, std::int64_t elements) {
  const std::int64_t blocks = std::min<std::int64_t>(ceil_div(elements, kThreads), 4 * 132);
  launch(call, sum_parts_kernel<T>, grid_size(blocks), kThreads, 0, parts, sum, elements, call.group->size());
}

void copy(const KernelCall& call, void* to, const void* from, std::size_t bytes) {
  if (bytes == 0 || to == from) return;
  FARSKIP_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, call.gpu->stream));
}

using Offsets = std::vector<std::int64_t>;  // elements: where each rank's piece begins, [size + 1]

/// Piece p of `data` to rank p; parts [size, own piece] of all ranks' data from them.
template <class T>
void send_pieces(const KernelCall& call, const T* data, const Offsets& offsets, T* parts) {
  const int rank = call.group->rank();
  const std::int64_t own = offsets[rank + 1] - offsets[rank];
  std::vector<PeerTransfer> transfers;
  for (int p = 0; p < call.group->size(); ++p)
    transfers.push_back({p, data + offsets[p],
                         static_cast<std::size_t>(offsets[p + 1] - offsets[p]) * sizeof(T), parts + p * own,
                         static_cast<std::size_t>(own) * sizeof(T), data + offsets[rank]});
  call.group->transfer(transfers, call.gpu->stream);
}

/// The own piece of `data` to all; theirs into their places.
template <class T>
void gather_pieces(const KernelCall& call, T* data, const Offsets& offsets) {
  const int rank = call.group->rank();
  const T* const own = data + offsets[rank];
  std::vector<PeerTransfer> transfers;
  for (int p = 0; p < call.group->size(); ++p)
    if (p != rank)
      transfers.push_back({p, own, static_cast<std::size_t>(offsets[rank + 1] - offsets[rank]) * sizeof(T),
                           data + offsets[p],
                           static_cast<std::size_t>(offsets[p + 1] - offsets[p]) * sizeof(T)});
  call.group->transfer(transfers, call.gpu->stream);
}

// ---- all_reduce: in place where there is one tensor, else put together in scratch. Behind that, the parts
// to sum.

std::size_t total_bytes(const OpTypes& types) {
  std::size_t bytes = 0;
  for (const TensorType* type : types.inputs) bytes += type->num_bytes();
  return bytes;
}

std::int64_t total_elements(std::span<const TensorView> views) {
  std::int64_t elements = 0;
  for (const TensorView& view : views) elements += view.num_elements();
  return elements;
}

/// The first pieces are the larger ones.
Offsets even_pieces(std::int64_t elements, int size) {
  const std::int64_t piece = ceil_div(elements, size);
  Offsets offsets;
  for (int p = 0; p <= size; ++p) offsets.push_back(std::min(elements, p * piece));
  return offsets;
}

std::size_t all_reduce_workspace(const OpTypes& types) {
  const auto size = static_cast<std::size_t>(types.get<ops::Replicas>().size);
  const std::size_t packed = types.inputs.size() == 1 ? 0 : aligned(total_bytes(types));
  return packed + total_bytes(types) + size * dtype_size(types.in(0).dtype);
}

template <class T>
T* reduced(const KernelCall& call) {
  return call.inputs.size() == 1 ? call.out<T>(0) : reinterpret_cast<T*>(call.workspace.data());
}

template <class T>
void pack_all_reduce(const KernelCall& call) {
  T* to = reduced<T>(call);
  for (const TensorView& in : call.inputs) {
    copy(call, to, in.data, in.num_bytes());
    to += in.num_elements();
  }
}

template <class T>
void transport_all_reduce(const KernelCall& call) {
  const std::int64_t elements = total_elements(call.inputs);
  const std::size_t packed =
      call.inputs.size() == 1 ? 0 : aligned(static_cast<std::size_t>(elements) * sizeof(T));
  T* const data = reduced<T>(call);
  T* const parts = reinterpret_cast<T*>(call.workspace.data() + packed);
  const Offsets offsets = even_pieces(elements, call.group->size());
  const int rank = call.group->rank();
  send_pieces(call, data, offsets, parts);
  sum_parts(call, parts, data + offsets[rank], offsets[rank + 1] - offsets[rank]);
  gather_pieces(call, data, offsets);
}

template <class T>
void unpack_all_reduce(const KernelCall& call) {
  const T* from = reduced<T>(call);
  for (const TensorView& out : call.outputs) {
    copy(call, out.data, from, out.num_bytes());
    from += out.num_elements();
  }
}

// ---- tensors cut by rows

/// Elements of rank p's rows of whole tensor i.
Range elements_of(const ops::Replicas& a, std::size_t i, const Shape& shape, int p) {
  const Range r = a.part(i, p);
  return {r.first * row_size(shape), r.count * row_size(shape)};
}

/// Where each rank's elements of all whole tensors begin when they lie rank by rank.
Offsets rank_offsets(const KernelCall& call, std::span<const TensorView> whole) {
  const auto& a = call.get<ops::Replicas>();
  Offsets offsets{0};
  for (int p = 0; p < call.group->size(); ++p) {
    std::int64_t elements = 0;
    for (std::size_t i = 0; i < whole.size(); ++i) elements += elements_of(a, i, whole[i].shape, p).count;
    offsets.push_back(offsets.back() + elements);
  }
  return offsets;
}

/// Calls f(part of a whole tensor, its place rank by rank, bytes) for all parts.
template <class T, class F>
void for_each_part(const KernelCall& call, std::span<const TensorView> whole, T* packed, const F& f) {
  const auto& a = call.get<ops::Replicas>();
  const Offsets offsets = rank_offsets(call, whole);
  for (int p = 0; p < call.group->size(); ++p) {
    T* at = packed + offsets[p];
    for (std::size_t i = 0; i < whole.size(); ++i) {
      const Range part = elements_of(a, i, whole[i].shape, p);
      f(whole[i].as<T>() + part.first, at, static_cast<std::size_t>(part.count) * sizeof(T));
      at += part.count;
    }
  }
}

template <class T>
T* scratch(const KernelCall& call) {
  return reinterpret_cast<T*>(call.workspace.data());
}

// ---- reduce_scatter: several tensors put together, then the parts to sum

std::size_t reduce_scatter_workspace(const OpTypes& types) {
  const auto size = static_cast<std::size_t>(types.get<ops::Replicas>().size);
  std::size_t own = 0;
  for (const TensorType& type : types.outputs) own += type.num_bytes();
  return (types.inputs.size() == 1 ? 0 : aligned(total_bytes(types))) + size * own;
}

std::size_t packed_bytes(const KernelCall& call) {
  return call.inputs.size() == 1
             ? 0
             : aligned(static_cast<std::size_t>(total_elements(call.inputs)) * sizeof(float));
}

void pack_reduce_scatter(const KernelCall& call) {
  if (call.inputs.size() == 1) return;
  for_each_part(
      call, call.inputs, scratch<float>(call),
      [&](const float* part, float* packed, std::size_t bytes) { copy(call, packed, part, bytes); });
}

/// Where the own sums are: in the only output, else in the own place of the scratch memory.
float* own_sums(const KernelCall& call, const Offsets& offsets) {
  return call.inputs.size() == 1 ? call.out(0) : scratch<float>(call) + offsets[call.group->rank()];
}

void transport_reduce_scatter(const KernelCall& call) {
  const Offsets offsets = rank_offsets(call, call.inputs);
  const int rank = call.group->rank();
  const float* const data = call.inputs.size() == 1 ? call.in(0) : scratch<float>(call);
  auto* const parts = reinterpret_cast<float*>(call.workspace.data() + packed_bytes(call));
  send_pieces(call, data, offsets, parts);
  sum_parts(call, parts, own_sums(call, offsets), offsets[rank + 1] - offsets[rank]);
}

void unpack_reduce_scatter(const KernelCall& call) {
  const float* at = own_sums(call, rank_offsets(call, call.inputs));
  for (const TensorView& out : call.outputs) {
    copy(call, out.data, at, out.num_bytes());
    at += out.num_elements();
  }
}

// ---- all_gather: in place where there is one tensor

std::size_t all_gather_workspace(const OpTypes& types) {
  std::size_t bytes = 0;
  for (const TensorType& type : types.outputs) bytes += type.num_bytes();
  return types.outputs.size() == 1 ? 0 : bytes;
}

template <class T>
T* gathered(const KernelCall& call) {
  return call.outputs.size() == 1 ? call.out<T>(0) : scratch<T>(call);
}

template <class T>
void pack_all_gather(const KernelCall& call) {
  T* at = gathered<T>(call) + rank_offsets(call, call.outputs)[call.group->rank()];
  for (const TensorView& in : call.inputs) {
    copy(call, at, in.data, in.num_bytes());
    at += in.num_elements();
  }
}

template <class T>
void transport_all_gather(const KernelCall& call) {
  gather_pieces(call, gathered<T>(call), rank_offsets(call, call.outputs));
}

template <class T>
void unpack_all_gather(const KernelCall& call) {
  if (call.outputs.size() == 1) return;
  for_each_part(call, call.outputs, scratch<T>(call),
                [&](T* part, const T* packed, std::size_t bytes) { copy(call, part, packed, bytes); });
}

template <class T>
Kernel all_gather_kernel() {
  return {.run = pack_all_gather<T>,
          .workspace = all_gather_workspace,
          .finish = unpack_all_gather<T>,
          .transport = transport_all_gather<T>};
}

}  // namespace
}  // namespace cuda

void register_cuda_collective(KernelTable& table);
void register_cuda_collective(KernelTable& table) {
  constexpr auto gpu = DeviceKind::cuda;
  table.add("all_reduce", DType::f32, gpu,
            {.run = cuda::pack_all_reduce<float>,
             .workspace = cuda::all_reduce_workspace,
             .finish = cuda::unpack_all_reduce<float>,
             .transport = cuda::transport_all_reduce<float>});
  table.add("all_reduce", DType::bf16, gpu,
            {.run = cuda::pack_all_reduce<cuda::bf16>,
             .workspace = cuda::all_reduce_workspace,
             .finish = cuda::unpack_all_reduce<cuda::bf16>,
             .transport = cuda::transport_all_reduce<cuda::bf16>});
  table.add("all_reduce", DType::f64, gpu,
            {.run = cuda::pack_all_reduce<double>,
             .workspace = cuda::all_reduce_workspace,
             .finish = cuda::unpack_all_reduce<double>,
             .transport = cuda::transport_all_reduce<double>});
  table.add("reduce_scatter", DType::f32, gpu,
            {.run = cuda::pack_reduce_scatter,
             .workspace = cuda::reduce_scatter_workspace,
             .finish = cuda::unpack_reduce_scatter,
             .transport = cuda::transport_reduce_scatter});
  table.add("all_gather", DType::f32, gpu, cuda::all_gather_kernel<float>());
  table.add("all_gather", DType::bf16, gpu, cuda::all_gather_kernel<cuda::bf16>());
}

}  // namespace farskip
