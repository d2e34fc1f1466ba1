// SPDX-License-Identifier: Apache-2.0
#pragma once
// A graph of the fold on a device, with its inputs written in host memory.

#include <map>
#include <string>

#include "farskip/runtime/context.h"
#include "farskip/state/states.h"

namespace farskip {

class GraphRunner {
 public:
  GraphRunner(Graph graph, const Context& context);

  /// Parameters are those of these states from now on.
  void bind(const States& states) { states.bind(*executor_); }
  bool has_input(std::string_view name) const { return inputs_.contains(name); }
  /// Host memory of an input, to be filled before run().
  const TensorView& input(std::string_view name) const;
  void run();
  /// Fills host memory with an output of the last run, before another plan runs in the context's arena.
  void read(std::string_view output, const TensorView& to) const;
  HostTensor read(std::string_view output) const { return executor_->read_output(output); }
  /// Of one element, f64.
  double read_number(std::string_view output) const { return read(output).values<double>()[0]; }

 private:
  struct Input {
    HostTensor host;
    std::shared_ptr<std::byte[]> device;  // where that is not the same memory
  };

  std::unique_ptr<Executor> executor_;
  std::map<std::string, Input, std::less<>> inputs_;
};

}  // namespace farskip
