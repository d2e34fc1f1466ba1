// SPDX-License-Identifier: Apache-2.0
#include "farskip/state/device_tensors.h"

#include "farskip/ops/ops.h"
#include "farskip/tensor/alignment.h"

namespace farskip {
namespace {

/// The compute copies of parameters that were just loaded.
Graph build_compute_copy_graph(const std::vector<LocalParameter>& parameters, DType compute) {
  Graph graph;
  Builder b{graph, {0, 0, -1, SubBlock::optimizer, Phase::update}};
  for (const LocalParameter& p : parameters) {
    if (!p.spec.has_compute_copy()) continue;
    b.scope.layer = p.spec.layer;
    const ValueId from =
        graph.add_external(ExternalKind::parameter, p.spec.name, {DType::f32, p.spec.shape, {}});
    const ValueId to =
        graph.add_external(ExternalKind::state, compute_copy_name(p.spec.name), {compute, p.spec.shape, {}});
    graph.add_update(to, ops::cast(b, from, compute));
  }
  return graph;
}

}  // namespace

DeviceBuffer allocate_on(Device& device, std::size_t bytes) {
  return {device.allocate(bytes), bytes};
}

DeviceTensors::DeviceTensors(std::shared_ptr<Device> device, const TensorMap& host)
    : device_(std::move(device)), host_(host) {
  const bool shared = device_->shares_host_memory();
  std::size_t total = 0;
  for (const auto& [name, tensor] : host_) {
    bytes_ += tensor.view().num_bytes();
    total += aligned(tensor.view().num_bytes());
  }
  if (!shared) memory_ = device_->allocate(total);
  std::byte* at = memory_.get();
  for (const auto& [name, tensor] : host_) {
    TensorView view = tensor.view();
    if (!shared) {
      view.data = at;
      at += aligned(view.num_bytes());
    }
    views_.emplace(name, view);
  }
}

TensorView DeviceTensors::at(std::string_view name) const {
  const auto it = views_.find(name);
  FARSKIP_CHECK(it != views_.end(), "no tensor named {}", name);
  return it->second;
}

void DeviceTensors::upload() const {
  if (!memory_) return;
  for (const auto& [name, tensor] : host_)
    device_->copy_in(at(name).data, tensor.view().data, tensor.view().num_bytes());
}

void DeviceTensors::download() const {
  if (!memory_) return;
  std::vector<CopyOut> parts;
  for (const auto& [name, tensor] : host_)
    parts.push_back({tensor.view().data, at(name).data, tensor.view().num_bytes()});
  device_->copy_out(parts);
}

void DeviceTensors::fill_zero() const {
  for (const auto& [name, view] : views_) device_->fill_zero(view.data, view.num_bytes());
}

DeviceWeights::DeviceWeights(std::shared_ptr<Device> device, const TensorMap& host,
                             const std::vector<LocalParameter>& parameters, DType compute)
    : device_(std::move(device)), compute_(compute), weights_(device_, host), arena_(device_) {
  for (const LocalParameter& p : parameters) names_.push_back(p.spec.name);
  if (compute_ == DType::f32) return;
  FARSKIP_CHECK(compute_ == DType::bf16, "weights are computed with in f32 or bf16");
  const auto copy_type = [&](const ParameterSpec& spec) { return TensorView{nullptr, compute_, spec.shape}; };
  std::size_t total = 0;
  for (const LocalParameter& p : parameters)
    if (p.spec.has_compute_copy()) total += aligned(copy_type(p.spec).num_bytes());
  copies_ = allocate_on(*device_, total);
  std::byte* at = copies_.memory.get();
  for (const LocalParameter& p : parameters) {
    if (!p.spec.has_compute_copy()) continue;
    TensorView view = copy_type(p.spec);
    view.data = at;
    at += aligned(view.num_bytes());
    copy_views_.emplace(p.spec.name, view);
  }
  Graph graph = build_compute_copy_graph(parameters, compute_);
  Plan plan = make_serial_plan(graph, workspace_rule(*device_));
  make_copies_ = std::make_unique<Executor>(std::move(graph), std::move(plan), device_->kernels(), arena_);
  bind(*make_copies_);
}

TensorView DeviceWeights::copy_of(std::string_view parameter) const {
  const auto it = copy_views_.find(parameter);
  return it == copy_views_.end() ? TensorView() : it->second;
}

void DeviceWeights::upload() {
  weights_.upload();
  if (make_copies_) make_copies_->run();
}

void DeviceWeights::bind(Executor& executor) const {
  const auto bind_if_there = [&](const std::string& name, const TensorView& view) {
    if (view && executor.has_external(name)) executor.bind(name, view);
  };
  for (const std::string& name : names_) {
    bind_if_there(name, weights_.at(name));
    bind_if_there(compute_copy_name(name), copy_of(name));
  }
}

}  // namespace farskip
