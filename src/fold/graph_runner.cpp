// SPDX-License-Identifier: Apache-2.0
#include "farskip/fold/graph_runner.h"

namespace farskip {

GraphRunner::GraphRunner(const Graph& graph, const Context& context, std::shared_ptr<const States> states)
    : runner_(context, {std::move(states)}),
      stage_(runner_.stage("fold",
                           [&] {
                             return PassPipeline{"fold", {{"fold", [&](const Graph&) { return graph; }}}};
                           },
                           {})) {
  for (const External& external : stage_.graph().externals()) {
    if (external.kind != ExternalKind::input) continue;
    const TensorType& type = stage_.graph().type(external.value);
    inputs_.emplace(external.name, HostTensor(type.dtype, type.shape));
  }
}

const TensorView& GraphRunner::input(std::string_view name) const {
  const auto it = inputs_.find(name);
  FARSKIP_CHECK(it != inputs_.end(), "no input named {}", name);
  return it->second.view();
}

void GraphRunner::run() {
  for (const auto& [name, values] : inputs_) stage_.set(name, values.view());
  runner_.run(stage_);
}

void GraphRunner::read(std::string_view output, const TensorView& to) const {
  const TensorView from = stage_.executor().output(output);
  FARSKIP_CHECK(from.num_bytes() == to.num_bytes(), "output {} has {} bytes, not {}", output,
                from.num_bytes(), to.num_bytes());
  stage_.executor().device().copy_out(to.data, from.data, to.num_bytes());
}

}  // namespace farskip
