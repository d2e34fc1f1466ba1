// SPDX-License-Identifier: Apache-2.0
#include "plan_simulation.h"

#include <algorithm>
#include <map>
#include <set>

#include "schedule/memory.h"
#include "tensor/alignment.h"

namespace farskip::test {
namespace {

/// An external's buffer is one cell of its own.
struct Cell {
  std::size_t external, index;
  auto operator<=>(const Cell&) const = default;
};
using Cells = std::set<Cell>;

constexpr std::size_t kArena = static_cast<std::size_t>(-1);
constexpr std::size_t kNothing = static_cast<std::size_t>(-1);

Cells arena_cells(std::size_t offset, std::size_t bytes) {
  Cells cells;
  for (std::size_t at = offset / kBufferAlignment; at * kBufferAlignment < offset + bytes; ++at)
    cells.insert({kArena, at});
  return bytes == 0 ? Cells() : cells;
}

class Simulation {
 public:
  Simulation(const Graph& graph, const Plan& plan)
      : graph_(graph), plan_(plan), runs_(graph.nodes().size(), 0) {
    for (const External& e : graph.externals()) content_[{e.value.index(), 0}] = e.value.index();
  }

  std::string run() {
    for (std::size_t s = 0; s < plan_.steps.size() && fault_.empty(); ++s) {
      step_ = s;
      const PlanStep& step = plan_.steps[s];
      const Node& node = graph_.node(step.node);
      if (node.op->collective != (step.kind != StepKind::run)) fail("the wrong kind of step");
      if (step.kind == StepKind::wait)
        finish(step.node);
      else if (step.portion.whole())
        begin(step, node);
      else
        run_portion(step, node);
    }
    step_ = plan_.steps.size();
    if (!in_flight_.empty()) fail("a collective is not waited for");
    if (std::any_of(runs_.begin(), runs_.end(), [](int count) { return count != 1; }))
      fail("a node does not run once");
    for (const Output& o : graph_.outputs()) read(o.value);
    std::map<std::size_t, std::size_t> expected;
    for (const External& e : graph_.externals()) expected[e.value.index()] = e.value.index();
    for (const StateUpdate& u : graph_.updates()) expected[u.from.index()] = u.to.index();
    for (const auto& [external, value] : expected)
      if (content_[{external, 0}] != value)
        fail(fmt::format("external %{} does not hold %{}", external, value));
    return fault_;
  }

 private:
  struct InFlight {
    Cells sent, written;
  };

  Cells cells_of(ValueId v) const {
    const Placement& p = plan_.placements[v.index()];
    if (p.external) return {{p.external.index(), 0}};
    if (!graph_.value(v).producer) return {{v.index(), 0}};
    return arena_cells(p.offset, graph_.type(v).num_bytes());
  }

  void begin(const PlanStep& step, const Node& node) {
    ++runs_[step.node.index()];
    InFlight use;
    for (const ValueId v : node.inputs)
      if (v) {
        read(v);
        use.sent.merge(cells_of(v));
      }
    Cells scratch = arena_cells(step.workspace_offset, step.workspace_bytes);
    for (const Cell& cell : scratch) write(cell, kNothing, use.sent, Cells());
    use.written = scratch;
    for (std::size_t o = 0; o < node.outputs.size(); ++o) {
      const ValueId v = node.outputs[o];
      for (const Cell& cell : cells_of(v)) {
        write(cell, step.kind == StepKind::start ? kNothing : v.index(), use.sent, shared_cells(node, o));
        if (!use.written.insert(cell).second) fail("two results in one place");
      }
    }
    if (step.kind == StepKind::start && !in_flight_.emplace(step.node, use).second) fail("started twice");
  }

  /// The first portion is as the start of a collective, the last also its end; scratch is a step's own.
  void run_portion(const PlanStep& step, const Node& node) {
    if (step.portion.first == 0) {
      PlanStep start = step;
      start.kind = StepKind::start;
      start.workspace_bytes = 0;
      begin(start, node);
    }
    const auto it = in_flight_.find(step.node);
    if (it == in_flight_.end()) return fail("a portion before the first");
    for (const Cell& cell : arena_cells(step.workspace_offset, step.workspace_bytes))
      write(cell, kNothing, it->second.sent, Cells());
    if (step.portion.first + step.portion.count == step.portion.of) finish(step.node);
  }

  /// Of inputs that the op may write output `o` over.
  Cells shared_cells(const Node& node, std::size_t o) const {
    Cells cells;
    for (std::size_t i = 0; i < node.inputs.size(); ++i)
      if (node.inputs[i] && node.op->may_share(o, i, graph_.type(node.outputs[o]).dtype))
        cells.merge(cells_of(node.inputs[i]));
    for (std::size_t i = 0; i < node.inputs.size(); ++i)
      if (node.inputs[i] && !node.op->may_share(o, i, graph_.type(node.outputs[o]).dtype))
        for (const Cell& cell : cells_of(node.inputs[i])) cells.erase(cell);
    return cells;
  }

  void finish(NodeId id) {
    if (in_flight_.erase(id) == 0) return fail("waited for what is not in flight");
    for (const ValueId v : graph_.node(id).outputs)
      for (const Cell& cell : cells_of(v)) content_[cell] = v.index();
  }

  void read(ValueId v) {
    for (const Cell& cell : cells_of(v)) {
      const auto it = content_.find(cell);
      if (it == content_.end() || it->second != v.index())
        fail(fmt::format("%{} is not in its place", v.value));
    }
  }

  void write(const Cell& cell, std::size_t value, const Cells& own_inputs, const Cells& shared) {
    if (cell.external == kArena && (cell.index + 1) * kBufferAlignment > plan_.arena_bytes)
      fail("outside the arena");
    if (own_inputs.contains(cell) && !shared.contains(cell)) fail("over an own input");
    for (const auto& [node, use] : in_flight_)
      if (use.sent.contains(cell) || use.written.contains(cell)) fail("over what is in flight");
    content_[cell] = value;
  }

  void fail(const std::string& what) {
    if (fault_.empty()) fault_ = fmt::format("step {}: {}", step_, what);
  }

  const Graph& graph_;
  const Plan& plan_;
  std::map<Cell, std::size_t> content_;  // value index
  std::map<NodeId, InFlight> in_flight_;
  std::vector<int> runs_;
  std::size_t step_ = 0;
  std::string fault_;
};

}  // namespace

std::string simulate_plan(const Graph& graph, const Plan& plan) {
  return Simulation(graph, plan).run();
}

std::string order_of(const Plan& plan) {
  std::string text;
  for (const PlanStep& step : plan.steps) {
    const char* kind = step.kind == StepKind::run ? "" : step.kind == StepKind::start ? "+" : "-";
    text += fmt::format("{}{}{}", text.empty() ? "" : " ", kind, step.node.value);
  }
  return text;
}

}  // namespace farskip::test
