// SPDX-License-Identifier: Apache-2.0
#pragma once
// Runs a plan on a device.

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "farskip/backend/device.h"
#include "farskip/base/heartbeat.h"
#include "farskip/comm/mesh.h"
#include "farskip/schedule/plan.h"

namespace farskip {

/// One block of a device's memory that several plans use in turn; grows to the largest. Where it is, plans
/// run.
class Arena {
 public:
  explicit Arena(std::shared_ptr<Device> device = make_cpu_device()) : device_(std::move(device)) {}
  Device& device() const { return *device_; }
  const std::shared_ptr<Device>& shared_device() const { return device_; }
  void reserve(std::size_t bytes);
  std::byte* data() const { return memory_.get(); }
  std::size_t size() const { return size_; }

 private:
  std::shared_ptr<Device> device_;
  std::shared_ptr<std::byte[]> memory_;
  std::size_t size_ = 0;
};

/// Scratch bytes from a kernel table, for make_serial_plan.
std::size_t cpu_workspace(const OpDef& op, const OpTypes& types);
/// The same of a device's kernels; must not outlive the device.
WorkspaceRule workspace_rule(const Device& device);
/// dtype under which a node's kernel is looked up: that of its first floating-point input, else of its
/// first output.
DType kernel_dtype(const OpTypes& types);

struct StepTime {
  NodeId node;
  StepKind kind = StepKind::run;
  double seconds = 0;
  double skew_seconds = 0;     // before it, of aligned ranks: until the last of them has come
  double packing_seconds = 0;  // of `seconds`, on a GPU: in which kernels of a collective put rows together
};

/// The ranks that collectives speak to, and who is told of every wait for them. Absent: the graph has none.
struct RankContext {
  const Mesh* mesh = nullptr;
  Heartbeat* heartbeat = nullptr;  // may be absent
  /// All ranks meet before each collective, so that its time is that of the transport alone. For measuring.
  bool align = false;
};

/// A graph with its plan, made executable: kernels looked up, addresses resolved. Bind every external once
/// (addresses may be bound again later), then run as often as wanted. Externals, outputs and the arena lie in
/// the memory of the arena's device.
///
/// On a GPU, run() only launches, collectives on a stream of their own: a start makes that stream wait for
/// what the compute stream has done so far, and a wait the compute stream for the transport. The first run
/// launches kernel by kernel (libraries choose their algorithms then), the second records, and from then on
/// the recording is replayed; binding anew, or an arena that has moved, records again.
///
/// `mesh`: the ranks that collectives speak to; may be nullptr for a graph without any. A collective in
/// flight is served between the tiles of the kernels that run meanwhile.
class Executor {
 public:
  Executor(Graph graph, Plan plan, const KernelTable& kernels, Arena& arena, RankContext ranks = {});

  /// InternalError unless name, dtype and shape are those of an external of the graph. The view is of device
  /// memory, 256-byte aligned on a GPU.
  void bind(std::string_view external, const TensorView& view);
  bool has_external(std::string_view name) const { return graph_.find_external(name).has_value(); }
  /// Runs every step. With `times`, appends the time of each: on the CPU by the clock; on a GPU by events
  /// around each kernel, launched one by one, and waited for.
  void run(std::vector<StepTime>* times = nullptr);
  /// Time in which this rank could do nothing but communicate (starts, waits), in all runs so far.
  double exposed_seconds() const { return exposed_seconds_; }
  /// View of a named output in device memory; its content is valid until another plan runs in the same arena.
  TensorView output(std::string_view name) const;
  /// Its content, copied to the host.
  HostTensor read_output(std::string_view name) const;
  Device& device() const { return *device_; }
  const Graph& graph() const { return graph_; }
  const Plan& plan() const { return plan_; }

 private:
  /// A view whose first dim is only known when the step runs.
  struct Bounded {
    TensorView* view;
    const std::int32_t* count;
    std::int64_t bound;
  };
  struct Step {
    const Kernel* kernel;
    const Attributes* attributes;
    std::vector<TensorView> inputs, outputs;
    std::vector<Bounded> bounded;                                  // on the CPU
    std::vector<const std::int32_t*> input_rows{}, output_rows{};  // on a GPU; empty: nothing is bounded
    std::span<std::byte> workspace;
  };
  std::uint64_t peers_generation() const;
  void resolve();
  Step resolve_node(std::size_t step);
  std::vector<const std::int32_t*> row_counts(const std::vector<ValueId>& values, NodeId node) const;
  TensorView view(ValueId value) const;
  void run_step(std::size_t step);
  void run_compute(const PlanStep& planned);
  void run_on_host(std::vector<StepTime>* times);
  void run_on_gpu(std::vector<StepTime>* times);
  KernelCall collective_call(NodeId node, const cuda::LaunchContext* stream) const;
  void launch(const PlanStep& planned) const;
  void launch_start(const PlanStep& planned) const;
  void launch_finish(const PlanStep& planned) const;
  void launch_all() const;
  void launch_timed(std::vector<StepTime>& times);
  void record();
  void wait_for(NodeId node);

  std::shared_ptr<Device> device_;  // before what lives in it
  Graph graph_;
  Plan plan_;
  Arena& arena_;
  std::vector<const Kernel*> kernels_;  // by node id
  std::vector<TensorView> bound_;       // by value id, externals only
  RankContext ranks_;
  std::vector<Step> steps_;       // by node id
  std::vector<Pending> pending_;  // by node id, collectives in flight
  int num_pending_ = 0;
  double exposed_seconds_ = 0;
  const std::byte* resolved_for_ = nullptr;  // arena address the steps point into
  std::uint64_t resolved_generation_ = 0;    // of the addresses that peers know
  bool stale_ = true;
  bool has_collectives_ = false;
  std::unique_ptr<Recording> recording_;
  std::unique_ptr<StreamEdges> edges_;  // by node id, collectives on a GPU
  std::unique_ptr<TimeMarks> marks_;
  bool has_run_ = false;
};

}  // namespace farskip
