// SPDX-License-Identifier: Apache-2.0
#include "farskip/schedule/plan.h"

#include <algorithm>
#include <array>

#include "schedule/memory.h"

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

const char* kind_text(StepKind kind) {
  constexpr std::array<const char*, 3> names{"", "start ", "wait "};
  return names[static_cast<std::size_t>(kind)];
}

/// Makes the steps of a serial plan.
class SerialOrder {
 public:
  SerialOrder(const Graph& graph, Waits waits)
      : graph_(graph), waits_(waits), has_reader_(graph.num_values(), 0) {
    for (const Node& node : graph.nodes())
      for (const ValueId v : node.inputs)
        if (v) has_reader_[v.index()] = 1;
  }

  std::vector<OrderedStep> run() {
    for (std::size_t n = 0; n < graph_.nodes().size(); ++n) {
      const Node& node = graph_.nodes()[n];
      for (const ValueId v : node.inputs)
        if (v && graph_.value(v).producer) wait_if_open(graph_.value(v).producer);
      if (node.op->collective)
        start(NodeId(n));
      else
        steps_.push_back({NodeId(n), StepKind::run});
    }
    while (!open_.empty()) wait_if_open(open_.front());
    return std::move(steps_);
  }

 private:
  bool has_reader(NodeId id) const {
    const Node& node = graph_.node(id);
    return std::any_of(node.outputs.begin(), node.outputs.end(),
                       [&](ValueId v) { return has_reader_[v.index()] != 0; });
  }

  void start(NodeId id) {
    constexpr std::ptrdiff_t most_unread = 2;  // each holds its buffers until the wait
    const auto unread = [&](NodeId other) { return !has_reader(other); };
    if (unread(id) && std::count_if(open_.begin(), open_.end(), unread) >= most_unread)
      wait_if_open(*std::find_if(open_.begin(), open_.end(), unread));
    steps_.push_back({id, StepKind::start});
    open_.push_back(id);
    if (waits_ == Waits::at_once) wait_if_open(id);
  }

  void wait_if_open(NodeId id) {
    if (std::erase(open_, id) > 0) steps_.push_back({id, StepKind::wait});
  }

  const Graph& graph_;
  const Waits waits_;
  std::vector<char> has_reader_;
  std::vector<NodeId> open_;  // started, in order
  std::vector<OrderedStep> steps_;
};

/// Calls f(types) for the types of a node.
template <class F>
auto with_types(const Graph& graph, const Node& node, const F& f) {
  std::vector<const TensorType*> inputs;
  std::vector<TensorType> outputs;
  for (const ValueId v : node.inputs) inputs.push_back(v ? &graph.type(v) : nullptr);
  for (const ValueId v : node.outputs) outputs.push_back(graph.type(v));
  return f(OpTypes{node.attributes, inputs, outputs});
}

}  // namespace

std::size_t workspace_bytes(const Graph& graph, NodeId id, const WorkspaceRule& workspace) {
  const Node& node = graph.node(id);
  return with_types(graph, node, [&](const OpTypes& types) { return workspace(*node.op, types); });
}

namespace {

/// What verify_plan knows of memory in use.
struct LiveBuffer {
  Buffer buffer;
  ValueId value;         // none: scratch of a collective in flight
  std::size_t last = 0;  // step
};

class Verifier {
 public:
  Verifier(const Graph& graph, const Plan& plan)
      : graph_(graph),
        plan_(plan),
        ranges_(step_ranges(graph, plan)),
        last_(graph.num_values(), 0),
        used_(graph.num_values(), 0) {}

  void run() {
    find_last_uses();
    check_externals();
    for (std::size_t s = 0; s < plan_.steps.size(); ++s) {
      check_inputs(s);
      if (plan_.steps[s].kind != StepKind::wait) check_writes(s);
    }
  }

 private:
  void find_last_uses() {
    const std::size_t end = plan_.steps.size();
    const auto use = [&](ValueId v, std::size_t step) {
      last_[v.index()] = std::max(last_[v.index()], step);
      used_[v.index()] = 1;
    };
    for (std::size_t n = 0; n < graph_.nodes().size(); ++n) {
      for (const ValueId v : graph_.nodes()[n].inputs)
        if (v) use(v, ranges_[n].last);
      for (const ValueId v : graph_.nodes()[n].outputs) use(v, ranges_[n].last);
    }
    for (const Output& o : graph_.outputs()) use(o.value, end);
    for (const StateUpdate& u : graph_.updates()) {
      use(u.to, end);
      FARSKIP_CHECK(plan_.placements[u.to.index()].external == u.from,
                    "update of %{} does not end in its buffer", u.from.value);
    }
    for (std::size_t v = graph_.num_values(); v-- > 0;)
      if (const ValueId count = graph_.type(ValueId(v)).count) use(count, last_[v]);
  }

  // Values live in the buffers of those externals only that are updated, and fit there.
  void check_externals() {
    std::vector<char> updated(graph_.num_values(), 0);
    for (const StateUpdate& u : graph_.updates()) updated[u.from.index()] = 1;
    for (std::size_t v = 0; v < graph_.num_values(); ++v) {
      const ValueId external = plan_.placements[v].external;
      if (!graph_.value(ValueId(v)).producer) {
        FARSKIP_CHECK(external == ValueId(v), "external %{} is not in its own buffer", v);
        if (used_[v] != 0) live_.push_back({{external, 0, 0}, external, last_[v]});
      } else if (external) {
        FARSKIP_CHECK(!graph_.value(external).producer && updated[external.index()] != 0 &&
                          graph_.type(ValueId(v)).num_bytes() <= graph_.type(external).num_bytes(),
                      "%{} lies in %{}, which is not updated or too small", v, external.value);
      }
    }
  }

  void check_inputs(std::size_t s) const {
    const Node& node = graph_.node(plan_.steps[s].node);
    for (const ValueId v : node.inputs) {
      if (!v || !graph_.value(v).producer) continue;
      const std::size_t written = ranges_[graph_.value(v).producer.index()].last;
      FARSKIP_CHECK(written < s, "step {} ({}) reads %{} before it is written", s, node.op->name, v.value);
    }
  }

  // Whoever writes a buffer must not hit one that is still to be read or written.
  void check_writes(std::size_t s) {
    const PlanStep& step = plan_.steps[s];
    const Node& node = graph_.node(step.node);
    const std::size_t done = ranges_[step.node.index()].last;
    std::erase_if(live_, [&](const LiveBuffer& b) { return b.last < s; });
    std::vector<LiveBuffer> mine;
    if (step.workspace_bytes > 0)  // each portion has its own
      mine.push_back({{{}, step.workspace_offset, step.workspace_offset + step.workspace_bytes},
                      {},
                      step.kind == StepKind::run ? s : done});
    if (step.portion.first == 0)
      for (const ValueId v : node.outputs)
        mine.push_back({buffer_of(plan_.placements[v.index()]), v, last_[v.index()]});
    for (std::size_t i = 0; i < mine.size(); ++i) {
      FARSKIP_CHECK(mine[i].buffer.external || mine[i].buffer.end <= plan_.arena_bytes,
                    "{} of step {} ({}) lies outside the arena", name_of(mine[i]), s, node.op->name);
      for (const LiveBuffer& other : live_)
        FARSKIP_CHECK(!mine[i].buffer.overlaps(other.buffer) || may_write_over(step.node, mine[i], other),
                      "step {} ({} @{}) writes {} over {}, which is still needed", s, node.op->name,
                      node.scope.text(), name_of(mine[i]), name_of(other));
      for (std::size_t j = 0; j < i; ++j)
        FARSKIP_CHECK(!mine[i].buffer.overlaps(mine[j].buffer), "{} and {} of step {} overlap",
                      name_of(mine[i]), name_of(mine[j]), s);
    }
    live_.insert(live_.end(), mine.begin(), mine.end());
  }

  // An input of the same node that the op may write over, and that nobody else reads from here on.
  bool may_write_over(NodeId id, const LiveBuffer& mine, const LiveBuffer& other) const {
    if (!mine.value || !other.value) return false;
    const Node& node = graph_.node(id);
    const StepRange step = ranges_[id.index()];
    if (other.last != step.last) return false;
    for (std::size_t n = 0; n < graph_.nodes().size(); ++n) {
      const auto& inputs = graph_.nodes()[n].inputs;
      if (NodeId(n) != id && ranges_[n].last >= step.first &&
          std::count(inputs.begin(), inputs.end(), other.value) > 0)
        return false;
    }
    for (std::size_t o = 0; o < node.outputs.size(); ++o)
      for (std::size_t i = 0; i < node.inputs.size(); ++i)
        if (node.outputs[o] == mine.value && node.inputs[i] == other.value &&
            node.op->may_share(o, i, graph_.type(mine.value).dtype))
          return true;
    return false;
  }

  static std::string name_of(const LiveBuffer& b) {
    return b.value ? fmt::format("%{}", b.value.value) : "scratch";
  }

  const Graph& graph_;
  const Plan& plan_;
  const std::vector<StepRange> ranges_;
  std::vector<std::size_t> last_;  // step; of values that are used
  std::vector<char> used_;
  std::vector<LiveBuffer> live_;
};

}  // namespace

std::string Plan::text(const Graph& graph) const {
  std::string out = fmt::format("arena {} bytes, {} live at most\n", arena_bytes, live_bytes);
  for (const PlanStep& step : steps) {
    const Node& node = graph.node(step.node);
    out += fmt::format("{}{} @{}", kind_text(step.kind), node.op->name, node.scope.text());
    if (!step.portion.whole())
      out += fmt::format(" rows {}+{}/{}", step.portion.first, step.portion.count, step.portion.of);
    if (step.kind == StepKind::wait) {
      out += "\n";
      continue;
    }
    out += " ->";
    for (const ValueId v : node.outputs)
      out += fmt::format(" %{} {}", v.value, place_text(placements[v.index()]));
    if (step.workspace_bytes > 0)
      out += fmt::format(" scratch {}+{}", step.workspace_offset, step.workspace_bytes);
    out += "\n";
  }
  return out;
}

Plan make_unplaced_plan(const Graph& graph, const WorkspaceRule& workspace,
                        const std::vector<OrderedStep>& order) {
  Plan plan;
  for (const OrderedStep& step : order)
    plan.steps.push_back({step.node, step.kind, step.portion, 0,
                          step.kind == StepKind::wait ? 0 : workspace_bytes(graph, step.node, workspace)});
  return plan;
}

Plan make_plan(const Graph& graph, const WorkspaceRule& workspace, const std::vector<OrderedStep>& order) {
  Plan plan = make_unplaced_plan(graph, workspace, order);
  place_buffers(graph, plan);
  return plan;
}

Plan make_serial_plan(const Graph& graph, const WorkspaceRule& workspace, Waits waits) {
  return make_plan(graph, workspace, SerialOrder(graph, waits).run());
}

std::int64_t num_portions(const Graph& graph, NodeId id) {
  const Node& node = graph.node(id);
  return node.op->portions == nullptr ? 1 : with_types(graph, node, node.op->portions);
}

std::vector<StepRange> step_ranges(const Graph& graph, const Plan& plan) {
  constexpr std::size_t none = static_cast<std::size_t>(-1);
  std::vector<StepRange> ranges(graph.nodes().size());
  std::vector<std::int64_t> next(ranges.size(), 0), of(ranges.size(), 1);  // portions
  for (std::size_t s = 0; s < plan.steps.size(); ++s) {
    const PlanStep& step = plan.steps[s];
    StepRange& range = ranges[step.node.index()];
    const std::string& op = graph.node(step.node).op->name;
    FARSKIP_CHECK(graph.node(step.node).op->collective == (step.kind != StepKind::run),
                  "step {} ({}) is of the wrong kind", s, op);
    if (step.kind == StepKind::wait) {
      FARSKIP_CHECK(range.first != none && range.last == none, "step {} waits for a {} not started", s, op);
    } else {
      const Portion& p = step.portion;
      FARSKIP_CHECK(p.of == 1 || (step.kind == StepKind::run && p.of == num_portions(graph, step.node)),
                    "step {} ({}) runs portions of {}", s, op, p.of);
      FARSKIP_CHECK(range.first == none || (p.first > 0 && p.of == of[step.node.index()]),
                    "step {} ({}) runs a second time", s, op);
      FARSKIP_CHECK(p.first == next[step.node.index()] && p.count > 0 && p.first + p.count <= p.of,
                    "step {} ({}) runs portions {}+{} of {} after {}", s, op, p.first, p.count, p.of,
                    next[step.node.index()]);
      if (p.first == 0) range.first = s;
      next[step.node.index()] += p.count;
      of[step.node.index()] = p.of;
    }
    if (step.kind != StepKind::start) range.last = s;
  }
  for (std::size_t n = 0; n < ranges.size(); ++n) {
    FARSKIP_CHECK(ranges[n].first != none && ranges[n].last != none, "node {} ({}) {}", n,
                  graph.nodes()[n].op->name,
                  ranges[n].first == none ? "does not run" : "is never waited for");
    FARSKIP_CHECK(next[n] == of[n], "node {} ({}) runs {} portions of {}", n, graph.nodes()[n].op->name,
                  next[n], of[n]);
  }
  return ranges;
}

std::string collective_order(const Graph& graph, const Plan& plan) {
  std::string text;
  for (const PlanStep& step : plan.steps) {
    if (step.kind != StepKind::start) continue;
    const Node& node = graph.node(step.node);
    text += fmt::format("{} @{}", node.op->name, node.scope.text());
    // The smaller side of a gather or scatter is this rank's share, not the same everywhere.
    const auto elements = [&](const std::vector<ValueId>& values) {
      std::int64_t sum = 0;
      for (const ValueId v : values) sum += graph.type(v).shape.num_elements();
      return sum;
    };
    for (const ValueId v : elements(node.inputs) >= elements(node.outputs) ? node.inputs : node.outputs)
      text += " " + graph.type(v).shape.text();
    text += "\n";
  }
  return text;
}

void verify_plan(const Graph& graph, const Plan& plan) {
  Verifier(graph, plan).run();
}

}  // namespace farskip
