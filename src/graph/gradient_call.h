// SPDX-License-Identifier: Apache-2.0
#pragma once
// What a gradient rule sees of the node it differentiates, and how it answers.

#include <algorithm>
#include <vector>

#include "farskip/graph/graph.h"

namespace farskip {

/// Handed to OpDef::gradient. The rule reads inputs, outputs and the gradients of the outputs, emits ops
/// through builder(), and sets the gradient of each input that needs one.
class GradientCall {
 public:
  GradientCall(Graph& graph, const Node& node, std::vector<ValueId> output_gradients,
               std::vector<char> needed)
      : builder_{graph, node.scope},
        node_(node),
        output_gradients_(std::move(output_gradients)),
        needed_(std::move(needed)),
        input_gradients_(node.inputs.size()) {
    builder_.scope.phase = Phase::backward;
  }

  Builder& builder() { return builder_; }
  template <class A>
  const A& get() const {
    return node_.attributes.get<A>();
  }
  ValueId in(std::size_t i) const { return i < node_.inputs.size() ? node_.inputs[i] : ValueId(); }
  ValueId out(std::size_t i) const { return node_.outputs[i]; }
  /// Gradient of output i; none when nothing that is differentiated reads that output.
  ValueId dout(std::size_t i = 0) const { return output_gradients_[i]; }
  /// The same for a rule that needs the gradient of every output it asks for: InternalError without one.
  ValueId required_dout(std::size_t i) const {
    FARSKIP_CHECK(dout(i), "the gradient of {} @{} needs a reader of output {}", node_.op->name,
                  node_.scope.text(), i);
    return dout(i);
  }
  bool needs(std::size_t i) const { return i < needed_.size() && needed_[i]; }
  void set(std::size_t i, ValueId gradient) {
    if (needs(i)) input_gradients_[i] = gradient;
  }
  const Shape& shape(ValueId v) const { return builder_.shape(v); }
  DType dtype(ValueId v) const { return builder_.graph.type(v).dtype; }
  /// Whether input i is a parameter, or put together by ranks that have a part each. Its gradient is then f32
  /// even where it is bf16 (the compute copy of an f32 parameter); that of every other value is of the
  /// value's own type.
  bool is_parameter(std::size_t i) const { return is_parameter(node_.inputs[i]); }
  const std::vector<ValueId>& input_gradients() const { return input_gradients_; }

 private:
  bool is_parameter(ValueId v) const {
    const NodeId producer = builder_.graph.value(v).producer;
    if (producer) {
      const Node& node = builder_.graph.node(producer);
      return node.op->collective && is_parameter(node.inputs[0]);
    }
    return std::any_of(builder_.graph.externals().begin(), builder_.graph.externals().end(),
                       [&](const External& e) { return e.value == v && e.kind == ExternalKind::parameter; });
  }

  Builder builder_;
  const Node node_;  // a copy: emitting ops may move the graph's nodes
  std::vector<ValueId> output_gradients_;
  std::vector<char> needed_;
  std::vector<ValueId> input_gradients_;
};

}  // namespace farskip
