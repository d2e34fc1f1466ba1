#pragma once
// Runs a plan on the CPU.

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/backend/kernel.h"
#include "farskip/schedule/plan.h"

namespace farskip {

/// One block of aligned memory that several plans use in turn; grows to the largest.
class Arena {
 public:
  void reserve(std::size_t bytes);
  std::byte* data() const { return memory_.get(); }
  std::size_t size() const { return size_; }

 private:
  std::shared_ptr<std::byte[]> memory_;
  std::size_t size_ = 0;
};

/// Scratch bytes from a kernel table, for make_serial_plan.
std::size_t cpu_workspace(const OpDef& op, const OpTypes& types);
/// dtype under which a node's kernel is looked up: that of its first floating-point input, else of its
/// first output.
DType kernel_dtype(const OpTypes& types);

struct NodeTime {
  NodeId node;
  double seconds = 0;
};

/// A graph with its plan, made executable: kernels looked up, addresses resolved. Bind every external once
/// (addresses may be bound again later), then run as often as wanted.
class Executor {
 public:
  Executor(Graph graph, Plan plan, const KernelTable& kernels, Arena& arena);

  /// InternalError unless name, dtype and shape are those of an external of the graph.
  void bind(std::string_view external, const TensorView& view);
  bool has_external(std::string_view name) const { return graph_.find_external(name).has_value(); }
  /// Runs every step. With `times`, appends the wall time of each.
  void run(std::vector<NodeTime>* times = nullptr);
  /// View of a named output; its content is valid until another plan runs in the same arena.
  TensorView output(std::string_view name) const;
  const Graph& graph() const { return graph_; }
  const Plan& plan() const { return plan_; }

 private:
  struct Step {
    const Kernel* kernel;
    const Attributes* attributes;
    std::vector<TensorView> inputs, outputs;
  };
  void resolve();
  TensorView view(ValueId value) const;

  Graph graph_;
  Plan plan_;
  Arena& arena_;
  std::vector<const Kernel*> kernels_;
  std::vector<TensorView> bound_;  // by value id, externals only
  std::vector<Step> steps_;
  const std::byte* resolved_for_ = nullptr;  // arena address the steps point into
  bool stale_ = true;
};

}  // namespace farskip
