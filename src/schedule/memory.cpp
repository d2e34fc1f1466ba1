// SPDX-License-Identifier: Apache-2.0
#include "schedule/memory.h"

#include <algorithm>
#include <numeric>

#include "tensor/alignment.h"

namespace farskip {
namespace {

constexpr std::size_t kNever = static_cast<std::size_t>(-1);

struct Interval {
  std::size_t first = kNever, last = 0;  // steps, inclusive
  std::size_t bytes = 0, offset = 0;
  bool overlaps(const Interval& other) const { return first <= other.last && other.first <= last; }
};

class Planner {
 public:
  Planner(const Graph& graph, Plan& plan)
      : graph_(graph),
        plan_(plan),
        steps_(step_ranges(graph, plan)),
        last_use_(graph.num_values(), 0),
        root_(graph.num_values()) {
    for (std::size_t v = 0; v < graph.num_values(); ++v) root_[v] = ValueId(v);
    find_last_uses();
    place_updates();
    share_in_place();
  }

  void measure() {
    std::vector<Interval> intervals = all_intervals();
    measure_live_bytes(intervals, used(intervals));
  }

  void run() {
    std::vector<Interval> intervals = all_intervals();
    const std::size_t num_values = graph_.num_values();
    assign_offsets(intervals);
    plan_.placements.assign(num_values, {});
    for (std::size_t v = 0; v < num_values; ++v) {
      const ValueId root = root_[v];
      Placement& p = plan_.placements[v];
      p.bytes = graph_.type(ValueId(v)).num_bytes();
      if (!graph_.value(root).producer && is_external(root))
        p.external = root;
      else
        p.offset = intervals[root.index()].offset;
    }
    for (std::size_t s = 0; s < plan_.steps.size(); ++s)
      plan_.steps[s].workspace_offset = intervals[num_values + s].offset;
  }

 private:
  bool is_external(ValueId v) const { return !graph_.value(v).producer; }

  void find_last_uses() {
    const std::size_t end = plan_.steps.size();
    for (std::size_t n = 0; n < graph_.nodes().size(); ++n)
      for (const ValueId v : graph_.nodes()[n].inputs)
        if (v) last_use_[v.index()] = std::max(last_use_[v.index()], steps_[n].last);
    for (const Output& o : graph_.outputs()) last_use_[o.value.index()] = end;
    for (const StateUpdate& u : graph_.updates()) last_use_[u.to.index()] = end;
    // A row count is read with every value it bounds.
    for (std::size_t v = graph_.num_values(); v-- > 0;)
      if (const ValueId count = graph_.type(ValueId(v)).count)
        last_use_[count.index()] = std::max(last_use_[count.index()], last_use_[v]);
  }

  std::size_t defined_at(ValueId v) const {
    const NodeId producer = graph_.value(v).producer;
    return producer ? steps_[producer.index()].first : 0;
  }
  std::size_t complete_at(ValueId v) const {
    const NodeId producer = graph_.value(v).producer;
    return producer ? steps_[producer.index()].last : 0;
  }

  // The new version of an external value is computed in that value's own buffer: directly, when nothing
  // reads the old version any more, or through a chain of in-place ops.
  void place_updates() {
    for (const StateUpdate& u : graph_.updates()) {
      ValueId v = u.to;
      std::vector<ValueId> chain;
      while (v != u.from && graph_.value(v).producer) {
        chain.push_back(v);
        v = in_place_source(v);
        if (!v) break;
      }
      // Where the chain begins with an op that writes elsewhere, it may begin in the buffer only once the old
      // version is no longer needed.
      if (v != u.from && has_other_reader_from(u.from, defined_at(chain.back()), NodeId()))
        chain.assign(1, u.to);
      const std::size_t first_write = defined_at(chain.back());
      FARSKIP_CHECK(v == u.from || last_use_[u.from.index()] <= first_write,
                    "external %{} is read after its new version is written", u.from.value);
      for (const ValueId c : chain) root_[c.index()] = u.from;
    }
  }

  // Input whose buffer `v` may take over, if that input dies in the producer of v.
  ValueId in_place_source(ValueId v) const {
    const NodeId producer = graph_.value(v).producer;
    const Node& node = graph_.node(producer);
    const StepRange step = steps_[producer.index()];
    const std::size_t output = graph_.value(v).output_index;
    for (std::size_t i = 0; i < node.inputs.size(); ++i) {
      const ValueId input = node.inputs[i];
      if (!input || !node.op->may_share(output, i, graph_.type(v).dtype)) continue;
      const bool twice = std::count(node.inputs.begin(), node.inputs.end(), input) > 1;
      if (last_use_[input.index()] == step.last && !twice &&
          graph_.type(input).num_bytes() == graph_.type(v).num_bytes() &&
          (step.first == step.last || !has_other_reader_from(input, step.first, producer)))
        return input;
    }
    return {};
  }

  // Whether anything but `node` reads v at or after `step`: a collective writes from its start on.
  bool has_other_reader_from(ValueId v, std::size_t step, NodeId node) const {
    for (std::size_t n = 0; n < graph_.nodes().size(); ++n) {
      const auto& inputs = graph_.nodes()[n].inputs;
      if (NodeId(n) != node && steps_[n].last >= step && std::count(inputs.begin(), inputs.end(), v) > 0)
        return true;
    }
    return false;
  }

  void share_in_place() {
    std::vector<char> taken(graph_.num_values(), 0);
    for (const PlanStep& step : plan_.steps) {
      if (step.kind == StepKind::wait) continue;
      for (const ValueId v : graph_.node(step.node).outputs) {
        if (root_[v.index()] != v) continue;
        const ValueId source = in_place_source(v);
        if (!source || taken[source.index()]) continue;
        const ValueId root = root_[source.index()];
        if (is_external(root)) continue;
        taken[source.index()] = 1;
        root_[v.index()] = root;
      }
    }
  }

  /// Of values, then of the scratch memory of each step.
  std::vector<Interval> all_intervals() const {
    std::vector<Interval> intervals = value_intervals();
    for (std::size_t s = 0; s < plan_.steps.size(); ++s) {
      const PlanStep& step = plan_.steps[s];
      const std::size_t bytes = step.kind == StepKind::wait ? 0 : step.workspace_bytes;
      const std::size_t last = step.kind == StepKind::run ? s : steps_[step.node.index()].last;
      intervals.push_back({s, last, bytes, 0});
    }
    return intervals;
  }

  /// Those that take memory, whose sizes are rounded up.
  static std::vector<std::size_t> used(std::vector<Interval>& intervals) {
    std::vector<std::size_t> order;
    for (std::size_t i = 0; i < intervals.size(); ++i)
      if (intervals[i].first != kNever && intervals[i].bytes > 0) {
        intervals[i].bytes = aligned(intervals[i].bytes);
        order.push_back(i);
      }
    return order;
  }

  std::vector<Interval> value_intervals() const {
    std::vector<Interval> intervals(graph_.num_values());
    for (std::size_t v = 0; v < graph_.num_values(); ++v) {
      const ValueId root = root_[v];
      if (is_external(root)) continue;
      Interval& interval = intervals[root.index()];
      interval.first = std::min(interval.first, defined_at(ValueId(v)));
      interval.last = std::max({interval.last, last_use_[v], complete_at(ValueId(v))});
      interval.bytes = std::max(interval.bytes, graph_.type(ValueId(v)).num_bytes());
    }
    return intervals;
  }

  void assign_offsets(std::vector<Interval>& intervals) {
    std::vector<std::size_t> order = used(intervals);
    measure_live_bytes(intervals, order);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return intervals[a].bytes > intervals[b].bytes; });
    std::vector<Interval> placed;  // copies, which are walked in order, sorted by offset
    for (const std::size_t i : order) {
      Interval& interval = intervals[i];
      std::size_t offset = 0;
      for (const Interval& other : placed) {
        if (!other.overlaps(interval)) continue;
        if (offset + interval.bytes <= other.offset) break;
        offset = std::max(offset, other.offset + other.bytes);
      }
      interval.offset = offset;
      const auto at = std::upper_bound(placed.begin(), placed.end(), offset,
                                       [](std::size_t o, const Interval& p) { return o < p.offset; });
      placed.insert(at, interval);
      plan_.arena_bytes = std::max(plan_.arena_bytes, offset + interval.bytes);
    }
  }

  void measure_live_bytes(const std::vector<Interval>& intervals, const std::vector<std::size_t>& order) {
    std::vector<std::ptrdiff_t> change(plan_.steps.size() + 2, 0);
    for (const std::size_t i : order) {
      change[intervals[i].first] += static_cast<std::ptrdiff_t>(intervals[i].bytes);
      change[intervals[i].last + 1] -= static_cast<std::ptrdiff_t>(intervals[i].bytes);
    }
    std::ptrdiff_t live = 0, peak = 0;
    for (const std::ptrdiff_t c : change) peak = std::max(peak, live += c);
    plan_.live_bytes = static_cast<std::size_t>(peak);
  }

  const Graph& graph_;
  Plan& plan_;
  const std::vector<StepRange> steps_;
  std::vector<std::size_t> last_use_;
  std::vector<ValueId> root_;  // value whose buffer this value lives in
};

}  // namespace

void place_buffers(const Graph& graph, Plan& plan) {
  plan.arena_bytes = plan.live_bytes = 0;
  Planner(graph, plan).run();
}

void measure_buffers(const Graph& graph, Plan& plan) {
  plan.live_bytes = 0;
  Planner(graph, plan).measure();
}

}  // namespace farskip
