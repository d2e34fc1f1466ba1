// SPDX-License-Identifier: Apache-2.0
#include "schedule/list_scheduler.h"

#include <algorithm>
#include <array>
#include <limits>
#include <queue>
#include <utility>

#include "schedule/dependence.h"
#include "schedule/memory.h"

namespace farskip {
namespace {

/// A rule of thumb for the order; the simulated time decides between them.
struct Rule {
  /// Weight of transports in the remaining path.
  double transport_weight = 1.0;
  /// Rather than begin something long, wait for something more urgent that is ready within this share of it.
  double patience = 0.0;
  /// Transports that nothing waits for (gradient reductions) start only when no other is left.
  bool reductions_last = false;
  /// While the link is idle, what such transports wait for goes first: where they are long, they would all be
  /// left for the end.
  bool feeds_link = false;
  /// Before something long begins, so many transports are started that the link has work meanwhile. Then a
  /// part of the memory for what comes before it is needed will do.
  bool fills_link = false;
  /// Where memory is full, what comes first in the graph goes first, whose order needs little; else what
  /// frees most.
  bool keeps_order = false;
};

constexpr std::array<double, 6> kTransportWeights{1, 0, 2, 4, 16, 1000};
constexpr std::array<double, 4> kPatience{0, 0.25, 0.5, 1};

std::vector<Rule> all_rules() {
  std::vector<Rule> rules;
  for (const bool reductions_last : {false, true})
    for (const double weight : kTransportWeights)
      for (const double patience : kPatience) rules.push_back({weight, patience, reductions_last});
  for (const bool fills_link : {false, true})
    for (const double weight : kTransportWeights)
      rules.push_back({.transport_weight = weight, .feeds_link = true, .fills_link = fills_link});
  return rules;
}

/// What does not change between rules.
struct Problem {
  Problem(const Graph& g, const WorkspaceRule& workspace, const NodeSeconds& s)
      : graph(g), seconds(s), dependence(find_dependence(g)) {
    for (std::size_t n = 0; n < g.nodes().size(); ++n) {
      portions.push_back(num_portions(g, NodeId(n)));
      scratch.push_back(static_cast<std::ptrdiff_t>(workspace_bytes(g, NodeId(n), workspace)));
    }
    std::vector<ValueId> updated(g.num_values());
    for (const StateUpdate& u : g.updates()) updated[u.to.index()] = u.from;
    has_reader.assign(g.nodes().size(), 0);
    num_readers.assign(g.num_values(), 0);
    for (const Node& node : g.nodes())
      for (const ValueId v : node.inputs) {
        if (!v) continue;
        ++num_readers[v.index()];
        if (const NodeId producer = g.value(v).producer; producer && !only_adds(node, v, updated))
          has_reader[producer.index()] = 1;
      }
    for (const Output& o : g.outputs()) ++num_readers[o.value.index()];
    feeds_link.assign(g.nodes().size(), 0);
    for (std::size_t n = 0; n < g.nodes().size(); ++n)
      for (const NodeId a : dependence.after[n])
        if (g.node(a).op->collective && has_reader[a.index()] == 0) feeds_link[n] = 1;
    for (std::size_t v = 0; v < g.num_values(); ++v)
      bytes.push_back(static_cast<std::ptrdiff_t>(g.type(ValueId(v)).num_bytes()));
    for (const External& e : g.externals()) bytes[e.value.index()] = 0;
    for (const StateUpdate& u : g.updates()) bytes[u.to.index()] = 0;
    for (std::size_t n = 0; n < g.nodes().size(); ++n) {
      std::ptrdiff_t made = 0;
      for (const ValueId v : g.nodes()[n].outputs) made += bytes[v.index()];
      output_bytes.push_back(made);
      comes_ahead.push_back(g.nodes()[n].op->collective && has_reader[n] != 0 &&
                            dependence.before[n].empty());
    }
  }

  /// The node adds the value to a state, and reads nothing else.
  static bool only_adds(const Node& node, ValueId value, const std::vector<ValueId>& updated) {
    const ValueId state = updated[node.outputs[0].index()];
    return state && node.outputs.size() == 1 && node.inputs.size() == 2 &&
           (node.inputs[0] == state || node.inputs[1] == state) && value != state;
  }
  /// Longest way to the end of the step from the beginning of each node.
  std::vector<double> remaining_paths(const Rule& rule) const {
    const std::size_t size = graph.nodes().size();
    std::vector<double> path(size, 0.0);
    std::vector<std::size_t> open(size);
    std::vector<NodeId> ready;
    for (std::size_t n = 0; n < size; ++n)
      if ((open[n] = dependence.after[n].size()) == 0) ready.push_back(NodeId(n));
    while (!ready.empty()) {
      const NodeId node = ready.back();
      ready.pop_back();
      double longest = 0;
      for (const NodeId a : dependence.after[node.index()]) longest = std::max(longest, path[a.index()]);
      const double weight = graph.node(node).op->collective ? rule.transport_weight : 1.0;
      path[node.index()] = longest + weight * seconds[node.index()];
      for (const NodeId b : dependence.before[node.index()])
        if (--open[b.index()] == 0) ready.push_back(b);
    }
    return path;
  }

  const Graph& graph;
  const NodeSeconds& seconds;
  const Dependence dependence;
  std::vector<std::int64_t> portions;        // by node
  std::vector<std::ptrdiff_t> scratch;       // by node, bytes
  std::vector<char> has_reader;              // by node: something waits for it
  std::vector<char> feeds_link;              // by node: a transport that nothing waits for needs it
  std::vector<int> num_readers;              // by value
  std::vector<std::ptrdiff_t> bytes;         // by value: in the arena, where an external takes no room
  std::vector<std::ptrdiff_t> output_bytes;  // by node: of all that it makes
  /// By node: a transport that waits for nothing, as what brings weights; how early it begins is a question
  /// of memory.
  std::vector<char> comes_ahead;
};

constexpr double kNever = std::numeric_limits<double>::infinity();

class Run {
 public:
  /// `ahead_limit`: bytes that may come before they are needed; 0: no limit.
  Run(const Problem& problem, const Rule& rule, std::size_t memory_limit, std::size_t ahead_limit)
      : p_(problem),
        rule_(rule),
        memory_limit_(memory_limit),
        ahead_limit_(static_cast<std::ptrdiff_t>(rule.fills_link ? ahead_limit / 4 : ahead_limit)),
        urgency_(problem.remaining_paths(rule)),
        readers_(problem.num_readers),
        done_at_(problem.graph.nodes().size(), 0.0),
        open_(problem.graph.nodes().size()),
        portions_done_(problem.graph.nodes().size(), 0),
        state_(problem.graph.nodes().size(), State::blocked),
        is_ahead_(problem.graph.nodes().size(), 0) {}

  std::vector<OrderedStep> run() {
    for (std::size_t n = 0; n < open_.size(); ++n)
      if ((open_[n] = p_.dependence.before[n].size()) == 0) release(NodeId(n));
    for (std::size_t n = 0; n < open_.size(); ++n)
      if (p_.graph.nodes()[n].op->collective && p_.has_reader[n]) ++urgent_transports_left_;
    while (num_done_ < open_.size()) {
      admit();
      if (start_transport(ready_.empty() && future_.empty() ? kNever : now_)) continue;
      const NodeId node = choose();
      if (!node)
        advance();
      else if (!is_full() || grows(node) <= 0 || !make_room())
        compute(node);
    }
    for (const NodeId c : in_flight_) order_.push_back({c, StepKind::wait});
    for (OrderedStep& step : order_)
      if (step.portion.whole()) step.portion = {};
    return std::move(order_);
  }

 private:
  enum class State : char { blocked, released, started, waited };

  /// All that the node needs has been scheduled; it can begin when the last of that is done.
  void release(NodeId node) {
    double at = 0;
    for (const NodeId b : p_.dependence.before[node.index()]) at = std::max(at, done_at_[b.index()]);
    future_.push({at, node});
  }

  void admit() {
    while (!future_.empty() && future_.top().first <= now_) {
      const NodeId node = future_.top().second;
      future_.pop();
      (p_.comes_ahead[node.index()] != 0    ? ahead_
       : p_.graph.node(node).op->collective ? transports_
                                            : ready_)
          .push_back(node);
    }
  }

  bool more_urgent(NodeId a, NodeId b) const {
    if (urgency_[a.index()] != urgency_[b.index()]) return urgency_[a.index()] > urgency_[b.index()];
    return a < b;
  }

  /// What waits for nothing would all begin at once: it begins where the link would be idle by `time` and
  /// memory has room, or where nothing else can go on.
  bool may_come_ahead(double time) const {
    return time == kNever ||
           (link_free_ <= time && !(is_full() && (find_freeing(in_flight_) || find_freeing(transports_))));
  }
  /// It takes no more memory before it is read than it may.
  bool fits_ahead(NodeId node) const {
    return ahead_bytes_ == 0 || ahead_limit_ == 0 ||
           ahead_bytes_ + p_.output_bytes[node.index()] <= ahead_limit_;
  }

  /// The next one to start. A transport that something waits for starts at once; another only while the link
  /// is idle, so that it does not stand in the way.
  NodeId choose_transport(double time) const {
    NodeId best;
    const auto offer = [&](NodeId node) {
      if (!best || more_urgent(node, best)) best = node;
    };
    const bool reductions = link_free_ <= now_ && !(rule_.reductions_last && urgent_transports_left_ > 0);
    for (const NodeId node : transports_)
      if (reductions || p_.has_reader[node.index()] != 0) offer(node);
    if (may_come_ahead(time))
      for (const NodeId node : ahead_)
        if (time == kNever || fits_ahead(node)) offer(node);
    return best;
  }

  /// Starts a transport if one may start now. One that nothing waits for holds its buffers no longer than the
  /// one before it. `time`: when the next one can start; never, where nothing else can go on.
  bool start_transport(double time) {
    const NodeId node = choose_transport(time);
    if (!node) return false;
    std::erase(p_.comes_ahead[node.index()] != 0 ? ahead_ : transports_, node);
    wait_for_inputs(node);
    if (!p_.has_reader[node.index()]) {
      const std::vector<NodeId> in_flight = in_flight_;
      for (const NodeId c : in_flight)
        if (!p_.has_reader[c.index()]) wait_for(c);
    }
    order_.push_back({node, StepKind::start});
    if (p_.has_reader[node.index()]) --urgent_transports_left_;
    if (p_.comes_ahead[node.index()] != 0) {
      is_ahead_[node.index()] = 1;
      ahead_bytes_ += p_.output_bytes[node.index()];
    }
    state_[node.index()] = State::started;
    in_flight_.push_back(node);
    link_free_ = std::max(now_, link_free_) + p_.seconds[node.index()];
    live_bytes_ += p_.output_bytes[node.index()] + p_.scratch[node.index()];
    finish(node, link_free_);
    return true;
  }

  bool is_full() const {
    return memory_limit_ > 0 && live_bytes_ > static_cast<std::ptrdiff_t>(memory_limit_);
  }

  /// A transport that nothing waits for, and whose end frees memory; none, where these are to wait
  /// themselves.
  NodeId find_freeing(const std::vector<NodeId>& transports) const {
    if (rule_.reductions_last && urgent_transports_left_ > 0) return {};
    const auto it = std::find_if(transports.begin(), transports.end(), [&](NodeId c) {
      return !p_.has_reader[c.index()] && p_.scratch[c.index()] + dying_bytes(c) > 0;
    });
    return it == transports.end() ? NodeId() : *it;
  }

  /// Waits for the end of such a transport: gradients may be computed faster than they are summed.
  bool make_room() {
    if (const NodeId c = find_freeing(in_flight_)) {
      now_ = std::max(now_, done_at_[c.index()]);
      wait_for(c);
      return true;
    }
    if (!find_freeing(transports_) || link_free_ <= now_) return false;
    now_ = link_free_;
    return true;
  }

  NodeId choose() const {
    if (ready_.empty()) return {};
    auto best = ready_.begin();
    const bool full = is_full();
    const bool feeds = rule_.feeds_link && link_free_ <= now_;
    const auto goes_first = [&](NodeId a, NodeId b) {
      if (full && rule_.keeps_order) return a < b;
      if (full) return grows_for_long(a) < grows_for_long(b);
      if (feeds && p_.feeds_link[a.index()] != p_.feeds_link[b.index()]) return p_.feeds_link[a.index()] != 0;
      return more_urgent(a, b);
    };
    for (auto it = ready_.begin() + 1; it != ready_.end(); ++it)
      if (goes_first(*it, *best)) best = it;
    const NodeId node = *best;
    if (!full && rule_.patience > 0 && is_worth_waiting(node)) return {};
    if (full && rule_.keeps_order && is_early(node)) return {};
    return node;
  }

  bool is_worth_waiting(NodeId node) const {
    if (future_.empty()) return false;
    const auto& [at, next] = future_.top();
    const double seconds = p_.seconds[node.index()] / static_cast<double>(p_.portions[node.index()]);
    return more_urgent(next, node) && at - now_ < rule_.patience * seconds;
  }

  /// It would take memory while what comes before it in the graph waits for a transport: what the backward
  /// computes again is ready all the time.
  bool is_early(NodeId node) const {
    return grows(node) > 0 && !future_.empty() && future_.top().second < node;
  }

  /// One portion; between two of them something more urgent may come.
  void compute(NodeId node) {
    const std::size_t n = node.index();
    std::erase(ready_, node);
    if (portions_done_[n] == 0) {
      wait_for_inputs(node);
      for (const NodeId b : p_.dependence.before[n])
        if (std::exchange(is_ahead_[b.index()], 0) != 0) ahead_bytes_ -= p_.output_bytes[b.index()];
    }
    const Portion portion{portions_done_[n]++, 1, p_.portions[n]};
    while (start_transport(now_ + (rule_.fills_link ? p_.seconds[n] * portion.share() : 0.0))) {
    }
    if (portion.first > 0 && order_.back().node == node)
      ++order_.back().portion.count;
    else
      order_.push_back({node, StepKind::run, portion});
    now_ += p_.seconds[n] * portion.share();
    if (portions_done_[n] < portion.of) {
      ready_.push_back(node);
      return;
    }
    live_bytes_ += p_.output_bytes[node.index()];
    let_go_inputs(node);
    finish(node, now_);
  }

  /// Time passes until something can begin.
  void advance() {
    double next = kNever;
    if (!future_.empty()) next = future_.top().first;
    if (!transports_.empty() || !ahead_.empty()) next = std::min(next, link_free_);
    FARSKIP_CHECK(next < kNever, "the graph has a cycle");
    now_ = std::max(now_, next);
  }

  void finish(NodeId node, double at) {
    ++num_done_;
    done_at_[node.index()] = at;
    for (const NodeId a : p_.dependence.after[node.index()])
      if (--open_[a.index()] == 0) release(a);
  }

  void wait_for_inputs(NodeId node) {
    for (const NodeId b : p_.dependence.before[node.index()])
      if (state_[b.index()] == State::started) wait_for(b);
  }
  void wait_for(NodeId collective) {
    std::erase(in_flight_, collective);
    state_[collective.index()] = State::waited;
    order_.push_back({collective, StepKind::wait});
    live_bytes_ -= p_.scratch[collective.index()];
    let_go_inputs(collective);
  }

  /// Bytes of what nothing reads after the node.
  std::ptrdiff_t dying_bytes(NodeId node) const {
    std::ptrdiff_t bytes = 0;
    for (const ValueId v : p_.graph.node(node).inputs)
      if (v && readers_[v.index()] == 1) bytes += p_.bytes[v.index()];
    return bytes;
  }
  /// Bytes by which the live buffers grow when the node has run.
  std::ptrdiff_t grows(NodeId node) const { return p_.output_bytes[node.index()] - dying_bytes(node); }
  /// The same when the transports have ended that nothing waits for.
  std::ptrdiff_t grows_for_long(NodeId node) const {
    return (p_.feeds_link[node.index()] != 0 ? 0 : p_.output_bytes[node.index()]) - dying_bytes(node);
  }
  /// Of a node that is done; a collective holds what it sends until it has been waited for.
  void let_go_inputs(NodeId node) {
    for (const ValueId v : p_.graph.node(node).inputs)
      if (v && --readers_[v.index()] == 0) live_bytes_ -= p_.bytes[v.index()];
  }

  const Problem& p_;
  const Rule rule_;
  const std::size_t memory_limit_;
  const std::ptrdiff_t ahead_limit_;
  const std::vector<double> urgency_;
  std::vector<int> readers_;
  std::vector<double> done_at_;
  std::vector<std::size_t> open_;
  std::vector<std::int64_t> portions_done_;
  std::vector<State> state_;
  std::vector<char> is_ahead_;  // by node: has started, and nothing has read it yet
  using Entry = std::pair<double, NodeId>;
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> future_;
  std::vector<NodeId> ready_, transports_, ahead_, in_flight_;  // ahead_: transports that wait for nothing
  std::vector<OrderedStep> order_;
  std::size_t num_done_ = 0;
  double now_ = 0, link_free_ = 0;
  int urgent_transports_left_ = 0;
  std::ptrdiff_t live_bytes_ = 0, ahead_bytes_ = 0;
};

double makespan_of(const Graph& graph, const std::vector<OrderedStep>& order, const NodeSeconds& seconds) {
  Plan plan;
  for (const OrderedStep& step : order) plan.steps.push_back({step.node, step.kind, step.portion});
  return simulate(graph, plan, seconds).makespan;
}

/// With live_bytes alone: most orders that are tried are not taken.
Plan make_measured_plan(const Graph& graph, const WorkspaceRule& workspace,
                        const std::vector<OrderedStep>& order) {
  Plan plan = make_unplaced_plan(graph, workspace, order);
  measure_buffers(graph, plan);
  return plan;
}

}  // namespace

Plan make_overlapped_plan(const Graph& graph, const WorkspaceRule& workspace, const NodeSeconds& seconds,
                          const ScheduleOptions& options) {
  FARSKIP_CHECK(seconds.size() == graph.nodes().size(), "{} costs for {} nodes", seconds.size(),
                graph.nodes().size());
  // Memory beyond the limit, then time: the limit comes first.
  const auto rank = [&](const Plan& plan) {
    const bool fits = options.memory_limit == 0 || plan.live_bytes <= options.memory_limit;
    return std::pair(fits ? 0 : plan.live_bytes - options.memory_limit,
                     simulate(graph, plan, seconds).makespan);
  };
  Plan best = make_serial_plan(graph, workspace, Waits::late);
  const std::size_t serial = best.live_bytes;
  auto best_rank = rank(best);
  const auto offer = [&](Plan plan) {
    const auto its_rank = rank(plan);
    if (its_rank >= best_rank) return false;
    best = std::move(plan);
    best_rank = its_rank;
    return true;
  };
  const auto collective = [](const Node& node) { return node.op->collective; };
  if (std::none_of(graph.nodes().begin(), graph.nodes().end(), collective)) return best;
  if (options.memory_limit > 0) offer(make_serial_plan(graph, workspace, Waits::at_once));
  const Problem problem(graph, workspace, seconds);
  // An order steers by an estimate of its memory, which ends somewhat above where it steers; and one that
  // steers lower is sometimes the shorter. The lowest marks, and after them orders that keep to the graph's
  // where memory is full, follow while nothing but the serial order fits.
  constexpr std::array<std::size_t, 6> kSteerBy{10, 9, 8, 7, 6, 5};  // tenths of the limit
  bool found = false;
  const auto try_rules = [&](std::size_t tenths, bool keeps_order) {
    const std::size_t limit = options.memory_limit / 10 * tenths;
    const std::size_t ahead = limit == 0 ? 0 : std::max<std::size_t>(limit, serial + 1) - serial;
    for (Rule rule : all_rules()) {
      rule.keeps_order = keeps_order;
      const std::vector<OrderedStep> order = Run(problem, rule, limit, ahead).run();
      // Before its buffers are placed, which takes longer.
      if (best_rank.first == 0 && makespan_of(graph, order, seconds) >= best_rank.second) continue;
      found = offer(make_measured_plan(graph, workspace, order)) || found;
    }
  };
  for (const bool keeps_order : {false, true}) {
    if (keeps_order && (found || options.memory_limit == 0)) break;
    for (const std::size_t tenths : kSteerBy) {
      if (tenths < 10 && (options.memory_limit == 0 || (tenths < 7 && found))) break;
      try_rules(tenths, keeps_order);
    }
  }
  if (best.placements.empty()) place_buffers(graph, best);
  return best;
}

}  // namespace farskip
