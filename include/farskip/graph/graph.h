// SPDX-License-Identifier: Apache-2.0
#pragma once
// Graph: single-assignment ops over typed values, in an order in which every value is defined before it
// is used. Passes are functions Graph → Graph; nothing edits a node in place.

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "farskip/graph/op.h"

namespace farskip {

enum class SubBlock : std::uint8_t { none, embedding, attention, shared, routed, dense, head, optimizer };
std::string_view block_name(SubBlock block);
enum class Phase : std::uint8_t { forward, backward, update };

/// Where in the training step a node belongs. Printer, profiler, planner and report all use it.
struct Scope {
  std::int16_t model = 0;        // 0; distillation: 0 student, 1 teacher
  std::int16_t micro_batch = 0;  // in flight at once
  std::int32_t layer = -1;       // -1: outside the layers
  SubBlock block = SubBlock::none;
  Phase phase = Phase::forward;

  /// "3.attention.forward", prefixed with "m1." / "b1." where model / micro_batch is not 0.
  std::string text() const;
  friend bool operator==(const Scope&, const Scope&) = default;
};
Scope parse_scope(std::string_view text);

/// Values that come from outside: what a micro-batch brings, weights, and state that a step updates.
enum class ExternalKind : std::uint8_t { input, parameter, state };

struct External {
  std::string name;
  ExternalKind kind = ExternalKind::input;
  ValueId value;
};

struct Value {
  TensorType type;
  NodeId producer{};             // none: external
  std::size_t output_index = 0;  // which output of the producer
};

struct Node {
  const OpDef* op = nullptr;
  Attributes attributes;
  std::vector<ValueId> inputs;  // a none id: absent optional input
  std::vector<ValueId> outputs;
  Scope scope;
};

/// `to` is the new version of the external value `from` (versioned state): it ends up in from's buffer.
struct StateUpdate {
  ValueId from, to;
};

struct Output {
  std::string name;
  ValueId value;
};

class Graph {
 public:
  explicit Graph(const OpTable& ops = op_table()) : ops_(&ops) {}

  ValueId add_external(ExternalKind kind, std::string name, TensorType type);
  /// Appends a node; output types come from the op's shape rule.
  std::vector<ValueId> add_node(const OpDef& op, Attributes attributes, std::vector<ValueId> inputs,
                                Scope scope);
  void add_output(std::string name, ValueId value);
  void add_update(ValueId from, ValueId to);

  const OpTable& ops() const { return *ops_; }
  const std::vector<Node>& nodes() const { return nodes_; }
  const Node& node(NodeId id) const { return nodes_[id.index()]; }
  std::size_t num_values() const { return values_.size(); }
  const Value& value(ValueId id) const { return values_[id.index()]; }
  const TensorType& type(ValueId id) const { return values_[id.index()].type; }
  const std::vector<External>& externals() const { return externals_; }
  const std::vector<Output>& outputs() const { return outputs_; }
  const std::vector<StateUpdate>& updates() const { return updates_; }
  std::optional<ValueId> find_external(std::string_view name) const;
  std::optional<ValueId> find_output(std::string_view name) const;

  /// Types of a node as its rules want them. Valid while the graph is not changed.
  OpCost cost(NodeId id) const;

 private:
  const OpTable* ops_;
  std::vector<Node> nodes_;
  std::vector<Value> values_;
  std::vector<External> externals_;
  std::vector<Output> outputs_;
  std::vector<StateUpdate> updates_;
};

/// Appends nodes under one scope; what model builders and gradient rules write with.
struct Builder {
  Graph& graph;
  Scope scope;

  template <class A>  // the move below is invisible to clang-tidy before instantiation
  std::vector<ValueId> emit(std::string_view op, A attributes,
                            std::vector<ValueId> inputs) {  // NOLINT(performance-unnecessary-value-param)
    return graph.add_node(graph.ops().at(op), Attributes::of(std::move(attributes)), std::move(inputs),
                          scope);
  }
  std::vector<ValueId> emit(std::string_view op, std::vector<ValueId> inputs) {
    return emit(op, NoAttributes{}, std::move(inputs));
  }
  const Shape& shape(ValueId value) const { return graph.type(value).shape; }
};

/// Copies a graph node by node, so that a pass states only what it changes.
class GraphCopier {
 public:
  /// Copies the externals, some of them with another type. Those of `left_out` are not copied, nor are their
  /// updates: the pass maps them, or nothing reads them.
  GraphCopier(const Graph& from, Graph& to, const std::unordered_map<ValueId, TensorType>& retyped = {},
              const std::unordered_set<ValueId>& left_out = {});
  ValueId operator()(ValueId old) const;  // where a copied value went; none stays none
  bool has(ValueId old) const { return !old || map_[old.index()]; }
  void map(ValueId old, ValueId now) { map_[old.index()] = now; }
  void copy(NodeId id);
  /// Maps outputs and updates; call last.
  void finish();

 private:
  const Graph& from_;
  Graph& to_;
  const std::unordered_set<ValueId> left_out_;
  std::vector<ValueId> map_;
};

/// Text of a graph, and back (see docs/architecture.md for the format). parse(print(g)) prints the same.
std::string print_graph(const Graph& graph);
/// DataError with the line number for text that is not a graph.
Graph parse_graph(std::string_view text, const OpTable& ops = op_table());

/// Throws InternalError naming the node unless: every input is defined earlier, every type agrees with
/// its op's shape rule, names are unique, updates keep the type, row counts are i32[1] defined earlier.
void verify_graph(const Graph& graph);

}  // namespace farskip
