// SPDX-License-Identifier: Apache-2.0
#include "farskip/state/states.h"

#include <algorithm>

#include "farskip/ops/ops.h"
#include "tensor/alignment.h"

namespace farskip {

Range StateSpec::rows() const {
  if (role == Role::cache) return {0, row_count(cache_shape)};
  return own_rows_only ? parameter->own_rows : Range{0, parameter->spec.num_rows()};
}

Shape StateSpec::shape() const {
  if (role == Role::cache) return cache_shape;
  const std::int64_t count = rows().count;
  return count == parameter->spec.num_rows() ? parameter->spec.shape
                                             : shape_of_rows(parameter->spec.shape, count);
}

std::size_t StateSpec::num_bytes() const {
  return static_cast<std::size_t>(shape().num_elements()) * dtype_size(dtype);
}

std::size_t total_bytes(std::span<const StateSpec> specs, Role role) {
  std::size_t bytes = 0;
  for (const StateSpec& spec : specs)
    if (spec.role == role) bytes += spec.num_bytes();
  return bytes;
}

namespace {

/// Of what graphs read: vectors and routers are small, and stay whole.
bool computes_in_parts(const LocalParameter& p) {
  return p.zero >= 3 && p.spec.has_compute_copy();
}

}  // namespace

bool is_filled_by_itself(const StateSpec& spec) {
  return spec.role == Role::compute_copy && !spec.own_rows_only && spec.parameter->zero >= 2 &&
         spec.parameter->own_rows.count < spec.rows().count;
}

std::vector<StateSpec> weight_states(const std::vector<LocalParameter>& parameters, DType compute) {
  std::vector<StateSpec> specs;
  const auto has_copy = [&](const LocalParameter& p) { return is_low(compute) && p.spec.has_compute_copy(); };
  for (const LocalParameter& p : parameters)
    specs.push_back({p.spec.name, Role::weight, DType::f32, std::make_shared<LocalParameter>(p),
                     has_copy(p) ? p.zero >= 2 : computes_in_parts(p)});
  for (std::size_t i = 0; i < parameters.size(); ++i)
    if (has_copy(parameters[i]))
      specs.push_back({compute_copy_name(parameters[i].spec.name), Role::compute_copy, compute,
                       specs[i].parameter, computes_in_parts(parameters[i])});
  return specs;
}

std::vector<StateSpec> constant_states(const std::vector<LocalParameter>& parameters, DType compute,
                                       const std::function<std::string(std::string_view)>& name) {
  std::vector<StateSpec> specs;
  for (const LocalParameter& p : parameters) {
    const std::string read = read_name(p.spec, compute);
    specs.push_back({name ? name(read) : read, Role::constant,
                     p.spec.has_compute_copy() ? compute : DType::f32, std::make_shared<LocalParameter>(p),
                     computes_in_parts(p)});
  }
  return specs;
}

std::vector<StateSpec> cache_states(const ModelConfig& config, std::int64_t rows, DType compute,
                                    int tensor_size) {
  std::vector<StateSpec> specs;
  for (const CacheSpec& cache : list_caches(config, tensor_size))
    specs.push_back({.name = cache.name,
                     .role = Role::cache,
                     .dtype = compute,
                     .parameter = nullptr,
                     .cache_shape = Shape{rows, cache.width}});
  return specs;
}

void States::add(std::vector<StateSpec> specs) {
  std::size_t total = 0;
  for (const StateSpec& spec : specs) total += aligned(spec.num_bytes());
  const auto& block = blocks_.emplace_back(device_->allocate(total));
  std::byte* at = block.get();
  for (StateSpec& spec : specs) {
    const bool is_new =
        views_.emplace(spec.name, std::pair(specs_.size(), TensorView{at, spec.dtype, spec.shape()})).second;
    FARSKIP_CHECK(is_new, "two states are called {}", spec.name);
    at += aligned(spec.num_bytes());
    specs_.push_back(std::move(spec));
    zero_padding(specs_.back());
  }
}

void States::zero_padding(const StateSpec& spec) const {
  if (spec.role == Role::cache) return;
  const Range kept = spec.rows();
  const std::int64_t first = std::max(spec.parameter->padding().first, kept.first);
  if (first >= kept.end()) return;
  const TensorView rows = rows_view(at(spec.name), first - kept.first, kept.end() - first);
  device_->fill_zero(rows.data, rows.num_bytes());
}

DType States::compute() const {
  const bool low = std::any_of(specs_.begin(), specs_.end(), [](const StateSpec& s) {
    return is_low(s.dtype) && s.role != Role::optimizer;
  });
  return low ? DType::bf16 : DType::f32;
}

TensorView States::at(std::string_view name) const {
  const auto it = views_.find(name);
  FARSKIP_CHECK(it != views_.end(), "no state named {}", name);
  return it->second.second;
}

TensorView States::own_rows(std::string_view name) const {
  const auto it = views_.find(name);
  FARSKIP_CHECK(it != views_.end(), "no state named {}", name);
  const auto& [index, view] = it->second;
  const StateSpec& spec = specs_[index];
  const Range own = spec.parameter->own_rows;
  const std::int64_t skipped = own.first - spec.rows().first;
  const auto offset =
      static_cast<std::size_t>(skipped * spec.parameter->spec.row_size()) * dtype_size(spec.dtype);
  return {view.as<std::byte>() + offset, spec.dtype, shape_of_rows(spec.parameter->spec.shape, own.count)};
}

TensorView States::find(std::string_view external) const {
  if (external.starts_with(kOwnRows)) {
    const std::string_view name = external.substr(kOwnRows.size());
    return contains(name) ? own_rows(name) : TensorView();
  }
  return contains(external) ? at(external) : TensorView();
}

void States::bind(Executor& executor) const {
  const Graph& graph = executor.graph();
  for (const External& external : graph.externals()) {
    TensorView view = find(external.name);
    if (!view) continue;
    const Shape& shape = graph.type(external.value).shape;
    FARSKIP_CHECK(view.num_elements() == shape.num_elements(), "external {} is {}, the state {}",
                  external.name, shape.text(), view.shape.text());
    view.shape = shape;
    executor.bind(external.name, view);
  }
}

std::size_t States::num_bytes() const {
  std::size_t bytes = 0;
  for (const StateSpec& spec : specs_) bytes += spec.num_bytes();
  return bytes;
}

void States::fill_zero(Role role) const {
  for (const StateSpec& spec : specs_)
    if (spec.role == role) device_->fill_zero(at(spec.name).data, spec.num_bytes());
}

HostTensor copy_to_host(Device& device, const TensorView& from) {
  HostTensor host(from.dtype, from.shape);
  device.copy_out(host.view().data, from.data, from.num_bytes());
  return host;
}

void make_compute_copies(States& states) {
  Graph graph;
  Builder b{graph, {0, 0, -1, SubBlock::optimizer, Phase::update}};
  for (const StateSpec& spec : states.specs()) {
    if (spec.role != Role::compute_copy || is_filled_by_itself(spec)) continue;
    const ParameterSpec& p = spec.parameter->spec;
    b.scope.layer = p.layer;
    const auto in_graph = [&](const std::string& name) {
      return spec.own_rows_only ? own_rows_name(name) : name;
    };
    const ValueId from =
        graph.add_external(ExternalKind::parameter, in_graph(p.name), {DType::f32, spec.shape(), {}});
    const ValueId to =
        graph.add_external(ExternalKind::state, in_graph(spec.name), {spec.dtype, spec.shape(), {}});
    graph.add_update(to, ops::cast(b, from, spec.dtype));
  }
  if (graph.nodes().empty()) return;
  Plan plan = make_serial_plan(graph, workspace_rule(states.device()));
  Arena arena(states.shared_device());
  Executor executor(std::move(graph), std::move(plan), states.device().kernels(), arena);
  states.bind(executor);
  executor.run();
}

}  // namespace farskip
