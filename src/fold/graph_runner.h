// SPDX-License-Identifier: Apache-2.0
#pragma once
// A graph of the fold on a device, with memory for its inputs and for the sums that its runs add to.

#include <functional>
#include <map>
#include <string>

#include "farskip/engine/program_runner.h"

namespace farskip {

/// Owns memory of a device, uninitialised unless filled.
struct DeviceTensor {
  DeviceTensor() = default;
  DeviceTensor(Device& device, DType dtype, Shape shape) : view{nullptr, dtype, std::move(shape)} {
    memory = device.allocate(view.num_bytes());
    view.data = memory.get();
  }
  std::shared_ptr<std::byte[]> memory;
  TensorView view;
};

class GraphRunner {
 public:
  /// States of the graph (ExternalKind::state) begin as zeros. `parameters`: its parameters, if it has any.
  GraphRunner(const Graph& graph, const Context& context, std::shared_ptr<const States> parameters = nullptr);

  bool has_input(std::string_view name) const { return tensors_.contains(name); }
  /// Device memory of an input or a state.
  const TensorView& at(std::string_view name) const;
  /// Fills an input from host memory.
  void write(std::string_view input, const void* host);
  void run() { runner_.run(*stage_); }
  /// Device memory of an output of the last run, valid until another plan runs in the context's arena.
  TensorView output(std::string_view name) const { return stage_->executor().output(name); }
  HostTensor read(std::string_view output) const { return stage_->read(output); }
  /// Of one element, f64.
  double read_number(std::string_view output) const { return read(output).values<double>()[0]; }
  /// Hands over a state in host memory, which is zeros again afterwards.
  void take(std::string_view state, const std::function<void(const TensorView&)>& use);

 private:
  Device& device() const { return *runner_.context().device(); }

  ProgramRunner runner_;
  std::map<std::string, DeviceTensor, std::less<>> tensors_;
  Stage* stage_ = nullptr;
};

}  // namespace farskip
