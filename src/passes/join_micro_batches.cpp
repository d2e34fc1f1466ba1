// SPDX-License-Identifier: Apache-2.0
#include "passes/join_micro_batches.h"

#include <algorithm>
#include <deque>
#include <map>

namespace farskip {

std::string micro_batch_name(std::string_view name, int number) {
  return number == 0 ? std::string(name) : fmt::format("{}#{}", name, number);
}

std::string_view base_name(std::string_view name) {
  return name.substr(0, name.find('#'));
}

Graph join_micro_batches(const Graph& first, const Graph& next, int number,
                         std::initializer_list<std::string_view> shared) {
  Graph out(first.ops());
  GraphCopier copy(first, out);
  for (std::size_t n = 0; n < first.nodes().size(); ++n) copy.copy(NodeId(n));
  for (const Output& o : first.outputs()) out.add_output(o.name, copy(o.value));

  std::vector<ValueId> map(next.num_values());
  for (const External& e : next.externals()) {
    ValueId& here = map[e.value.index()];
    if (e.kind == ExternalKind::input && std::find(shared.begin(), shared.end(), e.name) == shared.end()) {
      here = out.add_external(e.kind, micro_batch_name(e.name, number), next.type(e.value));
      continue;
    }
    const auto known = first.find_external(e.name);
    FARSKIP_CHECK(known && first.type(*known) == next.type(e.value), "{} is not in both micro-batches",
                  e.name);
    here = copy(*known);
    for (const StateUpdate& u : first.updates())
      if (u.from == *known) here = copy(u.to);  // its newest version
  }
  for (const Node& node : next.nodes()) {
    std::vector<ValueId> inputs;
    for (const ValueId v : node.inputs) inputs.push_back(v ? map[v.index()] : v);
    Scope scope = node.scope;
    scope.micro_batch = static_cast<std::int16_t>(number);
    const auto outputs = out.add_node(*node.op, node.attributes, std::move(inputs), scope);
    for (std::size_t i = 0; i < outputs.size(); ++i) map[node.outputs[i].index()] = outputs[i];
  }
  for (const Output& o : next.outputs())
    out.add_output(micro_batch_name(o.name, number), map[o.value.index()]);
  FARSKIP_CHECK(first.updates().size() == next.updates().size(), "micro-batches update other state");
  for (const StateUpdate& u : next.updates()) {
    const auto external = std::find_if(next.externals().begin(), next.externals().end(),
                                       [&](const External& e) { return e.value == u.from; });
    out.add_update(copy(*first.find_external(external->name)), map[u.to.index()]);
  }
  return out;
}

Graph interleave_micro_batches(const Graph& graph) {
  std::map<std::int16_t, std::deque<NodeId>> left;
  for (std::size_t n = 0; n < graph.nodes().size(); ++n)
    left[graph.nodes()[n].scope.micro_batch].push_back(NodeId(n));
  Graph out(graph.ops());
  GraphCopier copy(graph, out);
  for (bool more = true; more;) {
    more = false;
    for (auto& [number, nodes] : left)
      for (bool ends = false; !ends && !nodes.empty(); nodes.pop_front()) {
        copy.copy(nodes.front());
        ends = graph.node(nodes.front()).op->collective;
        more = true;
      }
  }
  copy.finish();
  return out;
}

}  // namespace farskip
