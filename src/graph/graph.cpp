// SPDX-License-Identifier: Apache-2.0
#include "farskip/graph/graph.h"

#include <algorithm>
#include <unordered_set>

namespace farskip {
namespace {

std::vector<const TensorType*> input_types(const Graph& graph, const std::vector<ValueId>& inputs) {
  std::vector<const TensorType*> types;
  for (const ValueId v : inputs) types.push_back(v ? &graph.type(v) : nullptr);
  return types;
}

/// Types of a node's outputs, which will be the values from `first` on.
std::vector<TensorType> output_types(const OpDef& op, const OpTypes& types, ValueId first) {
  std::vector<TensorType> out = infer_outputs(op, types);
  for (const RowCount& rows : op.row_counts) out[rows.output].count = ValueId(first.index() + rows.count);
  return out;
}

}  // namespace

ValueId Graph::add_external(ExternalKind kind, std::string name, TensorType type) {
  FARSKIP_CHECK(!find_external(name), "external {} exists already", name);
  const ValueId id(values_.size());
  values_.push_back({std::move(type), {}, 0});
  externals_.push_back({std::move(name), kind, id});
  return id;
}

std::vector<ValueId> Graph::add_node(const OpDef& op, Attributes attributes, std::vector<ValueId> inputs,
                                     Scope scope) {
  while (inputs.size() > op.min_inputs && !inputs.back()) inputs.pop_back();
  FARSKIP_CHECK(inputs.size() >= op.min_inputs && inputs.size() <= op.max_inputs,
                "{} takes {} to {} inputs, not {}", op.name, op.min_inputs, op.max_inputs, inputs.size());
  for (std::size_t i = 0; i < inputs.size(); ++i)
    FARSKIP_CHECK(
        inputs[i] ? inputs[i].index() < values_.size() : i >= op.min_inputs || op.max_inputs > op.min_inputs,
        "{}: input {} does not exist", op.name, i);
  const auto types = input_types(*this, inputs);
  const std::vector<TensorType> outputs =
      output_types(op, OpTypes{attributes, types}, ValueId(values_.size()));
  Node node{&op, std::move(attributes), std::move(inputs), {}, scope};
  const NodeId id(nodes_.size());
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    node.outputs.push_back(ValueId(values_.size()));
    values_.push_back({outputs[i], id, i});
  }
  nodes_.push_back(node);
  return node.outputs;
}

void Graph::add_output(std::string name, ValueId value) {
  FARSKIP_CHECK(value && value.index() < values_.size(), "output {} has no value", name);
  outputs_.push_back({std::move(name), value});
}

void Graph::add_update(ValueId from, ValueId to) {
  updates_.push_back({from, to});
}

std::optional<ValueId> Graph::find_external(std::string_view name) const {
  for (const External& e : externals_)
    if (e.name == name) return e.value;
  return std::nullopt;
}

std::optional<ValueId> Graph::find_output(std::string_view name) const {
  for (const Output& o : outputs_)
    if (o.name == name) return o.value;
  return std::nullopt;
}

OpCost Graph::cost(NodeId id) const {
  const Node& n = node(id);
  const auto inputs = input_types(*this, n.inputs);
  std::vector<TensorType> outputs;
  for (const ValueId v : n.outputs) outputs.push_back(type(v));
  return cost_of(*n.op, OpTypes{n.attributes, inputs, outputs});
}

GraphCopier::GraphCopier(const Graph& from, Graph& to, const std::unordered_map<ValueId, TensorType>& retyped,
                         const std::unordered_set<ValueId>& left_out)
    : from_(from), to_(to), left_out_(left_out), map_(from.num_values()) {
  for (const External& e : from.externals()) {
    if (left_out.contains(e.value)) continue;
    const auto other = retyped.find(e.value);
    map(e.value,
        to.add_external(e.kind, e.name, other == retyped.end() ? from.type(e.value) : other->second));
  }
}

ValueId GraphCopier::operator()(ValueId old) const {
  if (!old) return old;
  FARSKIP_CHECK(map_[old.index()], "value %{} was not copied", old.value);
  return map_[old.index()];
}

void GraphCopier::copy(NodeId id) {
  const Node& node = from_.node(id);
  std::vector<ValueId> inputs;
  for (const ValueId v : node.inputs) inputs.push_back((*this)(v));
  const auto outputs = to_.add_node(*node.op, node.attributes, std::move(inputs), node.scope);
  for (std::size_t i = 0; i < outputs.size(); ++i) map(node.outputs[i], outputs[i]);
}

void GraphCopier::finish() {
  for (const Output& o : from_.outputs()) to_.add_output(o.name, (*this)(o.value));
  for (const StateUpdate& u : from_.updates())
    if (!left_out_.contains(u.from)) to_.add_update((*this)(u.from), (*this)(u.to));
}

void verify_graph(const Graph& graph) {
  std::vector<char> defined(graph.num_values(), 0);
  std::unordered_set<std::string_view> names;
  for (const External& e : graph.externals()) {
    FARSKIP_CHECK(names.insert(e.name).second, "external name {} is not unique", e.name);
    defined[e.value.index()] = 1;
  }
  for (std::size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    for (const ValueId v : node.inputs)
      FARSKIP_CHECK(!v || defined[v.index()], "node {} ({} @{}) reads %{} before it is defined", n,
                    node.op->name, node.scope.text(), v.value);
    const auto types = input_types(graph, node.inputs);
    const auto expected = output_types(*node.op, OpTypes{node.attributes, types},
                                       node.outputs.empty() ? ValueId(graph.num_values()) : node.outputs[0]);
    FARSKIP_CHECK(expected.size() == node.outputs.size(), "node {} ({}) has {} outputs, not {}", n,
                  node.op->name, node.outputs.size(), expected.size());
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const ValueId v = node.outputs[i];
      FARSKIP_CHECK(!defined[v.index()], "value %{} is assigned twice", v.value);
      FARSKIP_CHECK(graph.type(v) == expected[i],
                    "node {} ({}): type of output {} does not follow from its inputs", n, node.op->name, i);
      const ValueId count = graph.type(v).count;
      FARSKIP_CHECK(
          !count || (count != v && (defined[count.index()] || graph.value(count).producer == NodeId(n))),
          "row count of %{} is not defined before it", v.value);
      defined[v.index()] = 1;
    }
  }
  for (const Output& o : graph.outputs())
    FARSKIP_CHECK(defined[o.value.index()], "output {} is undefined", o.name);
  for (const StateUpdate& u : graph.updates()) {
    FARSKIP_CHECK(!graph.value(u.from).producer, "update of %{}, which is not external", u.from.value);
    FARSKIP_CHECK(graph.type(u.from) == graph.type(u.to), "update of %{} changes its type", u.from.value);
  }
}

}  // namespace farskip
