// SPDX-License-Identifier: Apache-2.0
#pragma once
// Kernels: what a backend runs for an op. Looked up once, when a plan is made executable.

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <tuple>

#include "farskip/graph/op.h"

namespace farskip {

class DeviceCommunicator;
class Mesh;
class Pending;

enum class DeviceKind : std::uint8_t { cpu, cuda };

namespace cuda {
struct LaunchContext;  // backend/cuda/context.h
}

/// One execution of a node. Inputs and outputs in the op's order; an absent optional input is a view
/// without data.
///
/// Rows of a bounded value: on the CPU dim 0 of its view is already cut to their actual number. On a GPU the
/// host never knows that number: dim 0 is the bound, and input_rows/output_rows hold the device address of
/// the count (nullptr: all rows count). Rows past the count need not be read or written.
struct KernelCall {
  const Attributes& attributes;
  std::span<const TensorView> inputs;
  std::span<const TensorView> outputs;
  std::span<std::byte> workspace;  // as large as the kernel's workspace rule asked for, 64-byte aligned
  const cuda::LaunchContext* gpu = nullptr;  // stream and library handles; nullptr on the CPU
  std::span<const std::int32_t*const> input_rows{}, output_rows{};
  DeviceCommunicator* group = nullptr;  // of a collective on a GPU

  template <class A>
  const A& get() const {
    return attributes.get<A>();
  }
  bool has(std::size_t i) const { return i < inputs.size() && inputs[i].data != nullptr; }
  template <class T = float>
  const T* in(std::size_t i) const {
    return inputs[i].as<const T>();
  }
  template <class T = float>
  T* out(std::size_t i) const {
    return outputs[i].as<T>();
  }
  const Shape& in_shape(std::size_t i) const { return inputs[i].shape; }
  const Shape& out_shape(std::size_t i) const { return outputs[i].shape; }
};

/// What runs an op: `run`, or for a collective `start` and, once that has been waited for, `finish` (nullptr:
/// nothing is left to do). A collective on a GPU has three parts, each of which only launches: `run` on the
/// compute stream (packing; may be nullptr), `transport` on the communication stream, which call.gpu then is,
/// and `finish` on the compute stream where the plan waits.
struct Kernel {
  void (*run)(const KernelCall&) = nullptr;
  /// Bytes of scratch memory at the bound of the shapes; nullptr: none. A collective's lasts until finish.
  std::size_t (*workspace)(const OpTypes&) = nullptr;
  Pending (*start)(const KernelCall&, const Mesh&) = nullptr;
  void (*finish)(const KernelCall&) = nullptr;
  void (*transport)(const KernelCall&) = nullptr;
};

/// Kernels by (op, dtype of the op's computation, device).
class KernelTable {
 public:
  void add(std::string_view op, DType dtype, DeviceKind device, Kernel kernel);
  /// UsageError naming op, dtype and device where there is none.
  const Kernel& at(std::string_view op, DType dtype, DeviceKind device) const;
  bool contains(std::string_view op, DType dtype, DeviceKind device) const;
  const auto& all() const { return kernels_; }

 private:
  std::map<std::tuple<std::string, DType, DeviceKind>, Kernel, std::less<>> kernels_;
};

/// All f32 kernels of the CPU backend.
const KernelTable& cpu_kernel_table();
void register_cpu_kernels(KernelTable& table);
/// All kernels of the CUDA backend, whether or not there is a GPU; empty in a build without CUDA.
const KernelTable& cuda_kernel_table();

}  // namespace farskip
