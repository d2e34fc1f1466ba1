#include "farskip/runtime/executor.h"

#include <chrono>

#include "farskip/base/memory.h"

namespace farskip {
void Arena::reserve(std::size_t bytes) {
  if (bytes <= size_) return;
  memory_.reset();  // never both at once
  memory_ = allocate_memory(bytes);
  size_ = bytes;
}

DType kernel_dtype(const OpTypes& types) {
  for (const TensorType* type : types.inputs)
    if (type != nullptr &&
        (type->dtype == DType::f32 || type->dtype == DType::f64 || type->dtype == DType::bf16))
      return type->dtype;
  return types.outputs[0].dtype;
}

std::size_t cpu_workspace(const OpDef& op, const OpTypes& types) {
  const KernelTable& table = cpu_kernel_table();
  const DType dtype = kernel_dtype(types);
  if (!table.contains(op.name, dtype, DeviceKind::cpu)) return 0;
  const Kernel& kernel = table.at(op.name, dtype, DeviceKind::cpu);
  return kernel.workspace == nullptr ? 0 : kernel.workspace(types);
}

Executor::Executor(Graph graph, Plan plan, const KernelTable& kernels, Arena& arena)
    : graph_(std::move(graph)), plan_(std::move(plan)), arena_(arena), bound_(graph_.num_values()) {
  verify_plan(graph_, plan_);
  for (const PlanStep& step : plan_.steps) {
    const Node& node = graph_.node(step.node);
    std::vector<const TensorType*> inputs;
    std::vector<TensorType> outputs;
    for (const ValueId v : node.inputs) inputs.push_back(v ? &graph_.type(v) : nullptr);
    for (const ValueId v : node.outputs) outputs.push_back(graph_.type(v));
    kernels_.push_back(
        &kernels.at(node.op->name, kernel_dtype(OpTypes{node.attributes, inputs, outputs}), DeviceKind::cpu));
  }
  arena_.reserve(plan_.arena_bytes);
}

void Executor::bind(std::string_view external, const TensorView& view) {
  const auto value = graph_.find_external(external);
  FARSKIP_CHECK(value, "no external named {}", external);
  const TensorType& type = graph_.type(*value);
  FARSKIP_CHECK(type.dtype == view.dtype && type.shape == view.shape, "external {} is {}{}, not {}{}",
                external, dtype_name(type.dtype), type.shape.text(), dtype_name(view.dtype),
                view.shape.text());
  bound_[value->index()] = view;
  stale_ = true;
}

TensorView Executor::view(ValueId value) const {
  if (!value) return {};
  const Placement& p = plan_.placements[value.index()];
  TensorView v{nullptr, graph_.type(value).dtype, graph_.type(value).shape};
  if (p.external) {
    FARSKIP_CHECK(bound_[p.external.index()].data != nullptr, "external %{} is not bound", p.external.value);
    v.data = bound_[p.external.index()].data;
  } else {
    v.data = arena_.data() + p.offset;
  }
  return v;
}

void Executor::resolve() {
  arena_.reserve(plan_.arena_bytes);
  steps_.clear();
  for (std::size_t s = 0; s < plan_.steps.size(); ++s) {
    const Node& node = graph_.node(plan_.steps[s].node);
    Step step{kernels_[s], &node.attributes, {}, {}};
    for (const ValueId v : node.inputs) step.inputs.push_back(view(v));
    for (const ValueId v : node.outputs) step.outputs.push_back(view(v));
    steps_.push_back(std::move(step));
  }
  resolved_for_ = arena_.data();
  stale_ = false;
}

void Executor::run(std::vector<NodeTime>* times) {
  if (stale_ || resolved_for_ != arena_.data()) resolve();
  using Clock = std::chrono::steady_clock;
  for (std::size_t s = 0; s < steps_.size(); ++s) {
    const Step& step = steps_[s];
    const PlanStep& planned = plan_.steps[s];
    const auto start = times != nullptr ? Clock::now() : Clock::time_point();
    step.kernel->run({*step.attributes,
                      step.inputs,
                      step.outputs,
                      {arena_.data() + planned.workspace_offset, planned.workspace_bytes}});
    if (times != nullptr)
      times->push_back({planned.node, std::chrono::duration<double>(Clock::now() - start).count()});
  }
}

TensorView Executor::output(std::string_view name) const {
  const auto value = graph_.find_output(name);
  FARSKIP_CHECK(value, "no output named {}", name);
  return view(*value);
}

}  // namespace farskip
