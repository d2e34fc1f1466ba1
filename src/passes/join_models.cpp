// SPDX-License-Identifier: Apache-2.0
#include "passes/join_models.h"

namespace farskip {
namespace {

void append(const Graph& from, std::int16_t model,
            const std::function<std::string(std::string_view)>& parameter_name, std::string_view prefix,
            const std::map<ValueId, ValueId>& read_instead, JoinedModels& out) {
  Graph& graph = out.graph;
  std::vector<ValueId> map(from.num_values());
  const auto read = [&](ValueId v) {
    const auto other = read_instead.find(v);
    return other == read_instead.end() ? map[v.index()] : other->second;
  };
  for (const External& e : from.externals()) {
    const std::string name = e.kind == ExternalKind::parameter ? parameter_name(e.name) : e.name;
    const auto known = graph.find_external(name);
    FARSKIP_CHECK(!known || graph.type(*known) == from.type(e.value),
                  "{} has another type in the other model", name);
    map[e.value.index()] = known ? *known : graph.add_external(e.kind, name, from.type(e.value));
  }
  for (const Node& node : from.nodes()) {
    std::vector<ValueId> inputs;
    for (const ValueId v : node.inputs) inputs.push_back(v ? read(v) : v);
    Scope scope = node.scope;
    scope.model = model;
    const auto outputs = graph.add_node(*node.op, node.attributes, std::move(inputs), scope);
    for (std::size_t i = 0; i < outputs.size(); ++i) map[node.outputs[i].index()] = outputs[i];
  }
  for (const Output& o : from.outputs()) out.values[std::string(prefix) + o.name] = map[o.value.index()];
}

}  // namespace

std::string teacher_name(std::string_view name) {
  return std::string(kTeacherPrefix) += name;
}

JoinedModels join_models(const Graph& student, const Graph& teacher,
                         const std::function<std::string(std::string_view)>& parameter_name,
                         const std::vector<std::string>& from_teacher) {
  JoinedModels out{Graph(student.ops()), {}};
  append(teacher, 1, parameter_name, kTeacherPrefix, {}, out);
  std::map<ValueId, ValueId> read_instead;
  for (const std::string& name : from_teacher)
    read_instead[*student.find_output(name)] = out.values.at(teacher_name(name));
  append(
      student, 0, [](std::string_view name) { return std::string(name); }, "", read_instead, out);
  return out;
}

}  // namespace farskip
