// SPDX-License-Identifier: Apache-2.0
#include "farskip/fold/graph_runner.h"

#include "farskip/engine/engine.h"

namespace farskip {

GraphRunner::GraphRunner(Graph graph, const Context& context) {
  const PassPipeline pipeline{"fold", {{"fold", [&](const Graph&) { return graph; }}}};
  executor_ = compile(pipeline, context, {});
  Device& device = executor_->device();
  for (const External& external : executor_->graph().externals()) {
    if (external.kind != ExternalKind::input) continue;
    const TensorType& type = executor_->graph().type(external.value);
    Input& input = inputs_[external.name];
    input.host = HostTensor(type.dtype, type.shape);
    TensorView bound = input.host.view();
    if (!device.shares_host_memory()) {
      input.device = device.allocate(bound.num_bytes());
      bound.data = input.device.get();
    }
    executor_->bind(external.name, bound);
  }
}

const TensorView& GraphRunner::input(std::string_view name) const {
  const auto it = inputs_.find(name);
  FARSKIP_CHECK(it != inputs_.end(), "no input named {}", name);
  return it->second.host.view();
}

void GraphRunner::run() {
  for (const auto& [name, input] : inputs_)
    if (input.device != nullptr)
      executor_->device().copy_in(input.device.get(), input.host.view().data, input.host.bytes().size());
  executor_->run();
}

void GraphRunner::read(std::string_view output, const TensorView& to) const {
  const TensorView from = executor_->output(output);
  FARSKIP_CHECK(from.num_bytes() == to.num_bytes(), "output {} has {} bytes, not {}", output,
                from.num_bytes(), to.num_bytes());
  executor_->device().copy_out(to.data, from.data, to.num_bytes());
}

}  // namespace farskip
