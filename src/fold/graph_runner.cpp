// SPDX-License-Identifier: Apache-2.0
#include "fold/graph_runner.h"

namespace farskip {

GraphRunner::GraphRunner(const Graph& graph, const Context& context, std::shared_ptr<const States> parameters)
    : runner_(context, {std::move(parameters)}) {
  for (const External& external : graph.externals()) {
    if (external.kind == ExternalKind::parameter) continue;
    const TensorType& type = graph.type(external.value);
    const DeviceTensor& tensor = tensors_[external.name] = DeviceTensor(device(), type.dtype, type.shape);
    if (external.kind == ExternalKind::state) device().fill_zero(tensor.view.data, type.num_bytes());
    runner_.share(external.name, tensor.view);
  }
  const auto pipeline = [&] { return PassPipeline{"fold", {{"fold", [&](const Graph&) { return graph; }}}}; };
  stage_ = &runner_.stage("fold", pipeline, {});
}

const TensorView& GraphRunner::at(std::string_view name) const {
  const auto it = tensors_.find(name);
  FARSKIP_CHECK(it != tensors_.end(), "no input or state named {}", name);
  return it->second.view;
}

void GraphRunner::write(std::string_view input, const void* host) {
  const TensorView& to = at(input);
  device().copy_in(to.data, host, to.num_bytes());
}

void GraphRunner::take(std::string_view state, const std::function<void(const TensorView&)>& use) {
  const TensorView& from = at(state);
  if (device().shares_host_memory())
    use(from);
  else
    use(copy_to_host(device(), from).view());
  device().fill_zero(from.data, from.num_bytes());
}

}  // namespace farskip
