// SPDX-License-Identifier: Apache-2.0
#include "farskip/runtime/executor.h"

#include <chrono>

#include "backend/cpu/progress.h"

namespace farskip {
void Arena::reserve(std::size_t bytes) {
  if (bytes <= size_) return;
  memory_.reset();  // never both at once
  memory_ = device_->allocate(bytes);
  size_ = bytes;
}

namespace {

std::size_t workspace_bytes(const KernelTable& table, DeviceKind device, const OpDef& op,
                            const OpTypes& types) {
  const DType dtype = kernel_dtype(types);
  if (!table.contains(op.name, dtype, device)) return 0;
  const Kernel& kernel = table.at(op.name, dtype, device);
  return kernel.workspace == nullptr ? 0 : kernel.workspace(types);
}

}  // namespace

DType kernel_dtype(const OpTypes& types) {
  for (const TensorType* type : types.inputs)
    if (type != nullptr &&
        (type->dtype == DType::f32 || type->dtype == DType::f64 || type->dtype == DType::bf16))
      return type->dtype;
  return types.outputs[0].dtype;
}

std::size_t cpu_workspace(const OpDef& op, const OpTypes& types) {
  return workspace_bytes(cpu_kernel_table(), DeviceKind::cpu, op, types);
}

WorkspaceRule workspace_rule(const Device& device) {
  return [&table = device.kernels(), kind = device.kind()](const OpDef& op, const OpTypes& types) {
    return workspace_bytes(table, kind, op, types);
  };
}

Executor::Executor(Graph graph, Plan plan, const KernelTable& kernels, Arena& arena, RankContext ranks)
    : device_(arena.shared_device()),
      graph_(std::move(graph)),
      plan_(std::move(plan)),
      arena_(arena),
      bound_(graph_.num_values()),
      ranks_(ranks),
      pending_(graph_.nodes().size()) {
  verify_plan(graph_, plan_);
  for (const Node& node : graph_.nodes()) {
    has_collectives_ = has_collectives_ || node.op->collective;
    FARSKIP_CHECK(!node.op->collective || ranks_.mesh != nullptr, "{} without ranks to speak to",
                  node.op->name);
    FARSKIP_CHECK(!node.op->collective || device_->kind() == DeviceKind::cpu ||
                      ranks_.mesh->on_device(node.op->axis(node.attributes)) != nullptr,
                  "{} on {}, which is not connected", node.op->name, device_->name());
    std::vector<const TensorType*> inputs;
    std::vector<TensorType> outputs;
    for (const ValueId v : node.inputs) inputs.push_back(v ? &graph_.type(v) : nullptr);
    for (const ValueId v : node.outputs) outputs.push_back(graph_.type(v));
    kernels_.push_back(
        &kernels.at(node.op->name, kernel_dtype(OpTypes{node.attributes, inputs, outputs}), device_->kind()));
  }
  if (has_collectives_) ranks_.mesh->forget_device_addresses();
  arena_.reserve(plan_.arena_bytes);
}

std::uint64_t Executor::peers_generation() const {
  return ranks_.mesh != nullptr ? ranks_.mesh->device_generation() : 0;
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

// Where the number of rows of each value lies; a node's own result is not known when it begins.
std::vector<const std::int32_t*> Executor::row_counts(const std::vector<ValueId>& values, NodeId node) const {
  std::vector<const std::int32_t*> counts;
  bool any = false;
  for (const ValueId v : values) {
    const ValueId count = v ? graph_.type(v).count : ValueId();
    const bool known = count && graph_.value(count).producer != node;
    counts.push_back(known ? view(count).as<std::int32_t>() : nullptr);
    any = any || known;
  }
  if (!any) counts.clear();
  return counts;
}

Executor::Step Executor::resolve_node(std::size_t step) {
  const PlanStep& planned = plan_.steps[step];
  const Node& node = graph_.node(planned.node);
  Step out{kernels_[planned.node.index()],
           &node.attributes,
           {},
           {},
           {},
           {},
           {},
           {arena_.data() + planned.workspace_offset, planned.workspace_bytes}};
  for (const ValueId v : node.inputs) out.inputs.push_back(view(v));
  for (const ValueId v : node.outputs) out.outputs.push_back(view(v));
  if (device_->kind() != DeviceKind::cpu) {
    out.input_rows = row_counts(node.inputs, planned.node);
    out.output_rows = row_counts(node.outputs, planned.node);
    return out;
  }
  const auto add_bounded = [&](ValueId v, TensorView& seen) {
    const ValueId count = v ? graph_.type(v).count : ValueId();
    if (!count || graph_.value(count).producer == planned.node) return;  // its own result: not known yet
    out.bounded.push_back({&seen, view(count).as<std::int32_t>(), seen.shape[0]});
  };
  for (std::size_t i = 0; i < out.inputs.size(); ++i) add_bounded(node.inputs[i], out.inputs[i]);
  for (std::size_t i = 0; i < out.outputs.size(); ++i) add_bounded(node.outputs[i], out.outputs[i]);
  return out;
}

void Executor::resolve() {
  arena_.reserve(plan_.arena_bytes);
  steps_.resize(graph_.nodes().size());
  for (std::size_t s = 0; s < plan_.steps.size(); ++s)
    if (plan_.steps[s].kind != StepKind::wait) steps_[plan_.steps[s].node.index()] = resolve_node(s);
  resolved_for_ = arena_.data();
  resolved_generation_ = peers_generation();
  stale_ = false;
  recording_.reset();
}

namespace {

/// The views' rows of a portion.
std::vector<TensorView> cut_rows(std::vector<TensorView> views, const Portion& portion) {
  for (TensorView& v : views) {
    if (!v) continue;
    const std::int64_t rows = v.shape[0] / portion.of;
    const auto row_bytes = static_cast<std::int64_t>(v.num_bytes()) / v.shape[0];
    v.data = v.as<std::byte>() + portion.first * rows * row_bytes;
    v.shape.set_dim(0, portion.count * rows);
  }
  return views;
}

}  // namespace

void Executor::run_compute(const PlanStep& planned) {
  Step& step = steps_[planned.node.index()];
  const Portion& portion = planned.portion;
  for (const Bounded& b : step.bounded) {
    FARSKIP_CHECK(*b.count >= 0 && *b.count <= b.bound, "{} rows where at most {} fit", *b.count, b.bound);
    b.view->shape.set_dim(0, *b.count);
  }
  std::vector<TensorView> inputs, outputs;
  if (!portion.whole()) {
    inputs = cut_rows(step.inputs, portion);
    outputs = cut_rows(step.outputs, portion);
  }
  const KernelCall call{*step.attributes,
                        portion.whole() ? step.inputs : inputs,
                        portion.whole() ? step.outputs : outputs,
                        {arena_.data() + planned.workspace_offset, planned.workspace_bytes}};
  if (num_pending_ == 0) {
    step.kernel->run(call);
  } else {
    const cpu::ProgressScope progress(ranks_.mesh->world());
    step.kernel->run(call);
  }
}

void Executor::wait_for(NodeId node) {
  const Step& step = steps_[node.index()];
  {
    const HeartbeatWait wait(ranks_.heartbeat, graph_.node(node).op->name.c_str());
    pending_[node.index()].wait();
  }
  --num_pending_;
  if (step.kernel->finish != nullptr)
    step.kernel->finish({*step.attributes, step.inputs, step.outputs, step.workspace});
}

void Executor::run_step(std::size_t s) {
  const PlanStep& planned = plan_.steps[s];
  Step& step = steps_[planned.node.index()];
  switch (planned.kind) {
    case StepKind::run:
      return run_compute(planned);
    case StepKind::start:
      pending_[planned.node.index()] =
          step.kernel->start({*step.attributes, step.inputs, step.outputs, step.workspace}, *ranks_.mesh);
      ++num_pending_;
      return;
    case StepKind::wait:
      return wait_for(planned.node);
  }
}

void Executor::launch(const PlanStep& planned) const {
  switch (planned.kind) {
    case StepKind::run: {
      const Step& step = steps_[planned.node.index()];
      KernelCall call{*step.attributes,
                      step.inputs,
                      step.outputs,
                      {arena_.data() + planned.workspace_offset, planned.workspace_bytes},
                      device_->compute_context(),
                      step.input_rows,
                      step.output_rows};
      std::vector<TensorView> inputs, outputs;
      if (!planned.portion.whole()) {
        call.inputs = inputs = cut_rows(step.inputs, planned.portion);
        call.outputs = outputs = cut_rows(step.outputs, planned.portion);
      }
      return step.kernel->run(call);
    }
    case StepKind::start:
      return launch_start(planned);
    case StepKind::wait:
      edges_->wait(planned.node.index());
      return launch_finish(planned);
  }
}

KernelCall Executor::collective_call(NodeId node, const cuda::LaunchContext* stream) const {
  const Step& step = steps_[node.index()];
  KernelCall call{*step.attributes, step.inputs, step.outputs, step.workspace, stream};
  call.group = ranks_.mesh->on_device(graph_.node(node).op->axis(*step.attributes));
  return call;
}

void Executor::launch_start(const PlanStep& planned) const {
  const Kernel& kernel = *steps_[planned.node.index()].kernel;
  if (kernel.run != nullptr) kernel.run(collective_call(planned.node, device_->compute_context()));
  edges_->begin();
  kernel.transport(collective_call(planned.node, device_->communication_context()));
  edges_->end(planned.node.index());
}

void Executor::launch_finish(const PlanStep& planned) const {
  const Kernel& kernel = *steps_[planned.node.index()].kernel;
  if (kernel.finish != nullptr) kernel.finish(collective_call(planned.node, device_->compute_context()));
}

void Executor::launch_all() const {
  for (const PlanStep& planned : plan_.steps) launch(planned);
}

void Executor::record() {
  device_->begin_recording();
  try {
    launch_all();
  } catch (...) {
    device_->abandon_recording();
    throw;
  }
  recording_ = device_->end_recording();
}

// A step lasts from the mark before it to the mark behind it.
void Executor::launch_timed(std::vector<StepTime>& times) {
  struct Span {
    std::size_t begin, packed, end;
    double skew;
  };
  std::vector<Span> spans;
  if (!marks_) marks_ = device_->make_time_marks(2 * plan_.steps.size() + 1);
  std::size_t mark = 0;
  marks_->set(mark);
  for (const PlanStep& planned : plan_.steps) {
    Span span{mark, mark, mark, 0};
    if (ranks_.align && planned.kind == StepKind::start) {
      device_->synchronize();
      const auto arrival = std::chrono::steady_clock::now();
      ranks_.mesh->world().barrier();
      span.skew = std::chrono::duration<double>(std::chrono::steady_clock::now() - arrival).count();
      marks_->set(span.begin = ++mark);
    }
    if (planned.kind == StepKind::wait) {
      edges_->wait(planned.node.index());
      marks_->set(span.packed = ++mark);
      launch_finish(planned);
    } else {
      span.packed = span.begin;
      launch(planned);
    }
    marks_->set(span.end = ++mark);
    spans.push_back(span);
  }
  for (std::size_t s = 0; s < spans.size(); ++s) {
    const PlanStep& planned = plan_.steps[s];
    const auto seconds = [&](std::size_t from) { return marks_->seconds(from, spans[s].end); };
    times.push_back({planned.node, planned.kind, seconds(spans[s].begin), spans[s].skew,
                     planned.kind == StepKind::run ? 0.0 : seconds(spans[s].packed)});
  }
}

void Executor::run_on_gpu(std::vector<StepTime>* times) {
  if (!edges_ && has_collectives_) edges_ = device_->make_stream_edges(graph_.nodes().size());
  if (times != nullptr) {
    launch_timed(*times);
  } else if (recording_) {
    recording_->replay();
  } else if (has_run_ && device_->can_record()) {
    record();
    recording_->replay();
  } else {
    launch_all();
  }
  has_run_ = true;
}

void Executor::run(std::vector<StepTime>* times) {
  if (stale_ || resolved_for_ != arena_.data() || resolved_generation_ != peers_generation()) resolve();
  if (device_->kind() == DeviceKind::cpu)
    run_on_host(times);
  else
    run_on_gpu(times);
}

void Executor::run_on_host(std::vector<StepTime>* times) {
  using Clock = std::chrono::steady_clock;
  for (std::size_t s = 0; s < plan_.steps.size(); ++s) {
    const PlanStep& planned = plan_.steps[s];
    if (times == nullptr && planned.kind == StepKind::run) {
      run_step(s);
      continue;
    }
    const auto arrival = Clock::now();
    if (ranks_.align && planned.kind == StepKind::start) ranks_.mesh->world().barrier();
    const auto start = Clock::now();
    run_step(s);
    const auto end = Clock::now();
    const auto seconds = [](Clock::duration d) { return std::chrono::duration<double>(d).count(); };
    if (planned.kind != StepKind::run) exposed_seconds_ += seconds(end - start);
    if (times != nullptr)
      times->push_back({planned.node, planned.kind, seconds(end - start), seconds(start - arrival)});
  }
}

TensorView Executor::output(std::string_view name) const {
  const auto value = graph_.find_output(name);
  FARSKIP_CHECK(value, "no output named {}", name);
  return view(*value);
}

HostTensor Executor::read_output(std::string_view name) const {
  const TensorView from = output(name);
  HostTensor to(from.dtype, from.shape);
  device_->copy_out(to.view().data, from.data, from.num_bytes());
  return to;
}

}  // namespace farskip
