// SPDX-License-Identifier: Apache-2.0
#pragma once
// A graph of the fold on a device, with its inputs written in host memory.

#include <map>
#include <string>

#include "farskip/engine/program_runner.h"

namespace farskip {

class GraphRunner {
 public:
  /// `states`: its parameters.
  GraphRunner(const Graph& graph, const Context& context, std::shared_ptr<const States> states);

  bool has_input(std::string_view name) const { return inputs_.contains(name); }
  /// Host memory of an input, to be filled before run().
  const TensorView& input(std::string_view name) const;
  void run();
  /// Fills host memory with an output of the last run, before another plan runs in the context's arena.
  void read(std::string_view output, const TensorView& to) const;
  HostTensor read(std::string_view output) const { return stage_.read(output); }
  /// Of one element, f64.
  double read_number(std::string_view output) const { return read(output).values<double>()[0]; }

 private:
  ProgramRunner runner_;
  Stage& stage_;
  std::map<std::string, HostTensor, std::less<>> inputs_;
};

}  // namespace farskip
