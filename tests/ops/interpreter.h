// SPDX-License-Identifier: Apache-2.0
#pragma once
// Runs single ops and small graphs straight from a kernel table, without planner or executor, so that a
// failure here is a failure of a kernel or of an op's rules.

#include <memory>
#include <vector>

#include "farskip/backend/kernel.h"
#include "farskip/graph/graph.h"

namespace farskip::test {

/// Memory of one tensor or workspace: 64-byte aligned, filled with 0xff (NaN; -1 as an integer), and
/// followed by guard bytes.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(const TensorType& type);
  static Buffer copy_of(const TensorView& view);

  const TensorView& view() const { return view_; }
  /// Whether nothing was written past the end.
  bool intact() const;
  bool same_bits(const Buffer& other) const;

 private:
  std::shared_ptr<std::byte[]> memory_;
  TensorView view_;
};

/// One execution of one op: inputs (no data: absent) and where each output goes.
struct OpRun {
  const OpDef& op;
  const Attributes& attributes;
  std::vector<TensorView> inputs;

  std::vector<TensorType> output_types() const;
  /// The type under which the op's kernel is registered: its first floating-point input's, else output 0's.
  DType dtype() const;
  /// Runs the kernel of `dtype` into `outputs`, with fresh poisoned workspace. Throws InternalError when a
  /// guard was overwritten.
  void execute(const KernelTable& table, DType dtype, const std::vector<Buffer>& outputs) const;
  std::vector<Buffer> execute(const KernelTable& table, DType dtype,
                              const std::vector<TensorType>& types) const;
};

/// The outputs of an op by the CPU's kernel.
template <class A>
std::vector<Buffer> run_op(const char* op, const A& attributes, const std::vector<TensorView>& inputs) {
  const auto held = Attributes::of(attributes);
  const OpRun run{op_table().at(op), held, inputs};
  return run.execute(cpu_kernel_table(), run.dtype(), run.output_types());
}

/// The same op on f64 copies of the inputs, by the reference kernels.
std::vector<Buffer> run_reference(const OpDef& op, const Attributes& attributes,
                                  const std::vector<TensorView>& inputs);

/// Values of a graph by ValueId; the externals come first, in order.
std::vector<Buffer> run_graph(const Graph& graph, const std::vector<TensorView>& externals);

/// Element i as f64.
double element(const TensorView& view, std::int64_t i);

/// Largest |a - b| / (|b| + root mean square of b); infinity when a NaN is in one of them only.
double relative_error(const TensorView& a, const TensorView& b);

}  // namespace farskip::test
