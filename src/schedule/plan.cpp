#include "farskip/schedule/plan.h"

#include <algorithm>

#include "farskip/schedule/memory.h"

namespace farskip {
namespace {

std::string place_text(const Placement& p) {
  return p.external ? fmt::format("external %{}", p.external.value) : fmt::format("{}+{}", p.offset, p.bytes);
}

struct Buffer {
  ValueId external;
  std::size_t begin = 0, end = 0;
  bool overlaps(const Buffer& o) const {
    return external == o.external && (external ? true : begin < o.end && o.begin < end);
  }
};

Buffer buffer_of(const Placement& p) {
  return {p.external, p.offset, p.offset + p.bytes};
}

bool declared_in_place(const Node& node, ValueId output, ValueId input) {
  for (const InPlace& rule : node.op->in_place)
    if (rule.output < node.outputs.size() && node.outputs[rule.output] == output &&
        rule.input < node.inputs.size() && node.inputs[rule.input] == input)
      return true;
  return false;
}

}  // namespace

std::string Plan::text(const Graph& graph) const {
  std::string out = fmt::format("arena {} bytes, {} live at most\n", arena_bytes, live_bytes);
  for (const PlanStep& step : steps) {
    const Node& node = graph.node(step.node);
    out += fmt::format("{} @{} ->", node.op->name, node.scope.text());
    for (const ValueId v : node.outputs)
      out += fmt::format(" %{} {}", v.value, place_text(placements[v.index()]));
    if (step.workspace_bytes > 0)
      out += fmt::format(" scratch {}+{}", step.workspace_offset, step.workspace_bytes);
    out += "\n";
  }
  return out;
}

Plan make_serial_plan(const Graph& graph, WorkspaceRule workspace) {
  Plan plan;
  for (std::size_t n = 0; n < graph.nodes().size(); ++n) {
    const Node& node = graph.nodes()[n];
    std::vector<const TensorType*> inputs;
    std::vector<TensorType> outputs;
    for (const ValueId v : node.inputs) inputs.push_back(v ? &graph.type(v) : nullptr);
    for (const ValueId v : node.outputs) outputs.push_back(graph.type(v));
    plan.steps.push_back({NodeId(n), 0, workspace(*node.op, OpTypes{node.attributes, inputs, outputs})});
  }
  place_buffers(graph, plan);
  return plan;
}

void verify_plan(const Graph& graph, const Plan& plan) {
  const std::size_t end = plan.steps.size();
  FARSKIP_CHECK(end == graph.nodes().size(), "{} steps for {} nodes", end, graph.nodes().size());
  constexpr std::size_t kNone = static_cast<std::size_t>(-1);
  std::vector<std::size_t> last(graph.num_values(), 0), defined(graph.num_values(), kNone);
  for (const External& e : graph.externals()) defined[e.value.index()] = 0;
  for (std::size_t s = 0; s < end; ++s) {
    const Node& node = graph.node(plan.steps[s].node);
    for (const ValueId v : node.inputs) {
      if (!v) continue;
      FARSKIP_CHECK(defined[v.index()] != kNone, "step {} ({}) reads %{} before it is written", s,
                    node.op->name, v.value);
      last[v.index()] = s;
    }
    for (const ValueId v : node.outputs) {
      FARSKIP_CHECK(defined[v.index()] == kNone, "%{} is written twice", v.value);
      defined[v.index()] = s;
      last[v.index()] = std::max(last[v.index()], s);
    }
  }
  for (const Output& o : graph.outputs()) last[o.value.index()] = end;
  for (const StateUpdate& u : graph.updates()) {
    last[u.to.index()] = end;
    FARSKIP_CHECK(plan.placements[u.to.index()].external == u.from,
                  "update of %{} does not end in its buffer", u.from.value);
  }

  // Whoever writes a buffer must not hit one that is still to be read.
  std::vector<ValueId> live;
  for (const External& e : graph.externals()) live.push_back(e.value);
  for (std::size_t s = 0; s < end; ++s) {
    const PlanStep& step = plan.steps[s];
    const Node& node = graph.node(step.node);
    std::erase_if(live, [&](ValueId v) { return last[v.index()] < s; });
    const Buffer scratch{{}, step.workspace_offset, step.workspace_offset + step.workspace_bytes};
    FARSKIP_CHECK(scratch.end <= plan.arena_bytes, "scratch of step {} lies outside the arena", s);
    for (const ValueId v : node.outputs) {
      const Buffer mine = buffer_of(plan.placements[v.index()]);
      FARSKIP_CHECK(mine.external || mine.end <= plan.arena_bytes, "%{} lies outside the arena", v.value);
      FARSKIP_CHECK(!mine.overlaps(scratch) || scratch.begin == scratch.end,
                    "%{} overlaps its step's scratch", v.value);
      for (const ValueId other : live) {
        if (!mine.overlaps(buffer_of(plan.placements[other.index()]))) continue;
        const bool dies_here = last[other.index()] == s && declared_in_place(node, v, other);
        FARSKIP_CHECK(dies_here, "step {} ({} @{}) writes %{} over %{}, which is still needed", s,
                      node.op->name, node.scope.text(), v.value, other.value);
      }
      for (const ValueId sibling : node.outputs)
        FARSKIP_CHECK(sibling == v || !mine.overlaps(buffer_of(plan.placements[sibling.index()])),
                      "outputs of step {} overlap", s);
    }
    for (const ValueId other : live)
      FARSKIP_CHECK(step.workspace_bytes == 0 || !scratch.overlaps(buffer_of(plan.placements[other.index()])),
                    "scratch of step {} lies over %{}, which is still needed", s, other.value);
    for (const ValueId v : node.outputs) live.push_back(v);
  }
}

}  // namespace farskip
