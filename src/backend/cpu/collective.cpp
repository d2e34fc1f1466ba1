// SPDX-License-Identifier: Apache-2.0
// Sums over replicas and the way back from shards. One tensor travels from where it lies; several are put
// together in scratch memory, so that they cost one message a peer.
#include <cstring>
#include <span>

#include "farskip/backend/kernel.h"
#include "farskip/comm/mesh.h"
#include "ops/collective_ops.h"

namespace farskip {
namespace {

std::int64_t total_elements(std::span<const TensorView> views) {
  std::int64_t elements = 0;
  for (const TensorView& view : views) elements += view.num_elements();
  return elements;
}

/// Elements of rank p's rows of whole tensor i.
Range elements_of(const ops::Replicas& a, std::size_t i, const Shape& shape, std::int64_t p) {
  const Range r = a.part(i, p);
  return {r.first * row_size(shape), r.count * row_size(shape)};
}

/// Where each rank's elements of all whole tensors begin when they lie rank by rank: [size + 1].
std::vector<std::int64_t> rank_offsets(std::span<const TensorView> whole, const ops::Replicas& a) {
  std::vector<std::int64_t> offsets{0};
  for (std::int64_t p = 0; p < a.size; ++p) {
    std::int64_t elements = 0;
    for (std::size_t i = 0; i < whole.size(); ++i) elements += elements_of(a, i, whole[i].shape, p).count;
    offsets.push_back(offsets.back() + elements);
  }
  return offsets;
}

/// Calls f(elements in the whole tensor, its data, place in rank-by-rank order) for rank p's part of each.
template <class F>
void for_each_part(std::span<const TensorView> whole, const ops::Replicas& a, std::int64_t p,
                   std::int64_t place, const F& f) {
  for (std::size_t i = 0; i < whole.size(); ++i) {
    const Range part = elements_of(a, i, whole[i].shape, p);
    f(whole[i].as<float>() + part.first, part.count, place);
    place += part.count;
  }
}

void copy(float* to, const float* from, std::int64_t elements) {
  if (elements > 0 && to != from) std::memmove(to, from, static_cast<std::size_t>(elements) * sizeof(float));
}

float* scratch(const KernelCall& call) {
  return reinterpret_cast<float*>(call.workspace.data());
}

// ---- all_reduce

std::size_t packed_inputs_workspace(const OpTypes& types) {
  std::size_t bytes = 0;
  for (const TensorType* type : types.inputs) bytes += type->num_bytes();
  return types.inputs.size() == 1 ? 0 : bytes;
}

template <class T>
Pending start_all_reduce(const KernelCall& call, const Mesh& mesh) {
  const Communicator& group = mesh.group(call.get<ops::Replicas>().axis);
  if (call.inputs.size() == 1) {
    const TensorView& in = call.inputs[0];
    T* out = call.out<T>(0);
    if (in.data != out) std::memcpy(out, in.data, in.num_bytes());
    return group.start_all_reduce(std::span(out, static_cast<std::size_t>(in.num_elements())));
  }
  T* at = reinterpret_cast<T*>(call.workspace.data());
  for (const TensorView& in : call.inputs) {
    std::memcpy(at, in.data, in.num_bytes());
    at += in.num_elements();
  }
  return group.start_all_reduce(std::span(reinterpret_cast<T*>(call.workspace.data()),
                                          static_cast<std::size_t>(total_elements(call.inputs))));
}

void finish_all_reduce(const KernelCall& call) {
  if (call.inputs.size() == 1) return;
  const std::byte* at = call.workspace.data();
  for (const TensorView& out : call.outputs) {
    std::memcpy(out.data, at, out.num_bytes());
    at += out.num_bytes();
  }
}

// ---- reduce_scatter

Pending start_reduce_scatter(const KernelCall& call, const Mesh& mesh) {
  const auto& a = call.get<ops::Replicas>();
  const auto offsets = rank_offsets(call.inputs, a);
  const auto total = static_cast<std::size_t>(offsets.back());
  const auto own = static_cast<std::size_t>(offsets[a.rank + 1] - offsets[a.rank]);
  if (call.inputs.size() == 1)
    return mesh.group(a.axis).start_reduce_scatter(std::span<const float>(call.in(0), total), offsets,
                                                   std::span<float>(call.out(0), own));
  float* const packed = scratch(call);
  for (std::int64_t p = 0; p < a.size; ++p)
    for_each_part(call.inputs, a, p, offsets[p],
                  [&](const float* data, std::int64_t count, std::int64_t place) {
                    copy(packed + place, data, count);
                  });
  return mesh.group(a.axis).start_reduce_scatter(std::span<const float>(packed, total), offsets,
                                                 std::span<float>(packed + offsets[a.rank], own));
}

void finish_reduce_scatter(const KernelCall& call) {
  if (call.inputs.size() == 1) return;
  const auto& a = call.get<ops::Replicas>();
  const float* at = scratch(call) + rank_offsets(call.inputs, a)[a.rank];
  for (const TensorView& out : call.outputs) {
    copy(out.as<float>(), at, out.num_elements());
    at += out.num_elements();
  }
}

// ---- all_gather

std::size_t all_gather_workspace(const OpTypes& types) {
  std::size_t bytes = 0;
  for (const TensorType& type : types.outputs) bytes += type.num_bytes();
  return types.outputs.size() == 1 ? 0 : bytes;
}

Pending start_all_gather(const KernelCall& call, const Mesh& mesh) {
  const auto& a = call.get<ops::Replicas>();
  const auto offsets = rank_offsets(call.outputs, a);
  const auto total = static_cast<std::size_t>(offsets.back());
  const auto own = static_cast<std::size_t>(offsets[a.rank + 1] - offsets[a.rank]);
  if (call.outputs.size() == 1)
    return mesh.group(a.axis).start_all_gather(std::span<const float>(call.in(0), own), offsets,
                                               std::span<float>(call.out(0), total));
  float* at = scratch(call) + offsets[a.rank];
  for (const TensorView& in : call.inputs) {
    copy(at, in.as<float>(), in.num_elements());
    at += in.num_elements();
  }
  return mesh.group(a.axis).start_all_gather(std::span<const float>(scratch(call) + offsets[a.rank], own),
                                             offsets, std::span<float>(scratch(call), total));
}

void finish_all_gather(const KernelCall& call) {
  if (call.outputs.size() == 1) return;
  const auto& a = call.get<ops::Replicas>();
  const auto offsets = rank_offsets(call.outputs, a);
  for (std::int64_t p = 0; p < a.size; ++p)
    for_each_part(call.outputs, a, p, offsets[p], [&](float* data, std::int64_t count, std::int64_t place) {
      copy(data, scratch(call) + place, count);
    });
}

}  // namespace

void register_collective(KernelTable& table);
void register_collective(KernelTable& table) {
  const auto cpu = DeviceKind::cpu;
  table.add(
      "all_reduce", DType::f32, cpu,
      {.workspace = packed_inputs_workspace, .start = start_all_reduce<float>, .finish = finish_all_reduce});
  table.add(
      "all_reduce", DType::f64, cpu,
      {.workspace = packed_inputs_workspace, .start = start_all_reduce<double>, .finish = finish_all_reduce});
  table.add(
      "reduce_scatter", DType::f32, cpu,
      {.workspace = packed_inputs_workspace, .start = start_reduce_scatter, .finish = finish_reduce_scatter});
  table.add("all_gather", DType::f32, cpu,
            {.workspace = all_gather_workspace, .start = start_all_gather, .finish = finish_all_gather});
}

}  // namespace farskip
